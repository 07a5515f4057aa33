"""Several processes that serve together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

WAIT_SECONDS = 30.0


def workers_of(server) -> set[int]:
    """The processes whose parent is the one that looks after the workers."""
    found = set()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == server.process.pid and fields[0] != "Z":
                found.add(int(name))
    return found


def until(holds):
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def server(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_WORKERS": "2"})
    until(lambda: len(workers_of(server)) == 2)
    return server


def sent(method: str, url: str, **options) -> httpx2.Response:
    """The answer; what finds no worker, or loses the one it found, is sent again."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return httpx2.request(method, url, **options)
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def put(url: str, number: int) -> bool:
    """Write and read on two connections, which may reach different workers."""
    sent("PUT", f"{url}/kv/{number}", json=number).raise_for_status()
    return sent("GET", f"{url}/kv/{number}").json() == number


def test_all_serve_one_store_and_tell_their_metrics_apart(server):
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(put, [server.url] * 100, range(100)))
    seen = set()

    def both() -> bool:
        text = httpx2.get(f"{server.url}/metrics").text
        assert "rstored_process_cpu_seconds_total{worker=" in text
        seen.update(re.findall(r'rstored_request_seconds_count\{.*worker="(\d+)"', text))
        return seen == {"0", "1"}

    until(both)
    assert server.stop() == 0
    assert workers_of(server) == set()


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(server):
    for number in range(4):
        put(server.url, number)
        os.kill(min(workers_of(server)), signal.SIGKILL)
        until(lambda: len(workers_of(server)) == 2)
    assert all(sent("GET", f"{server.url}/kv/{number}").json() == number for number in range(4))
    assert server.log.count("a worker ended") == 4
    assert server.stop() == 0


def test_workers_end_with_their_parent(server):
    workers = workers_of(server)
    server.process.kill()
    server.process.wait()

    def gone() -> bool:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                return False
        return True

    until(gone)


def test_what_keeps_them_from_starting_is_said_once(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'none' / 'store.db'}", wait=False, env={"RSTORED_WORKERS": "4"})
    assert server.process.wait(WAIT_SECONDS) == 1
    assert server.log.count("there is no folder") == 1
