"""The life of a service process: start, drain, crash, recover; health, metrics and logs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from tests.waiting import SECONDS_MAX, until

from rstore import Store, StoreNotAvailableError


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    """A store that does not exist yet."""
    return f"sqlite:///{tmp_path / 'store.db'}"


def slow_put(url: str, path: str, size: int) -> tuple[socket.socket, bytes]:
    """A connection on which a PUT has begun, and the rest of its body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + b"x" * (size // 2))
    return connection, b"x" * (size - size // 2)


# --- stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_exits_with_zero(serve, dsn, how):
    server = serve(dsn)
    in_flight = [slow_put(server.url, f"/kv/k{number}", 1000) for number in range(5)]
    server.wait_until_read()
    server.process.send_signal(how)
    server.wait_until_stopping()
    assert server.process.poll() is None, "it did not wait for the requests in flight"
    for connection, rest in in_flight:
        connection.sendall(rest)
    for connection, _ in in_flight:
        assert connection.recv(4096).startswith(b"HTTP/1.1 201")
        connection.close()
    assert server.process.wait(SECONDS_MAX) == 0
    assert "Traceback" not in server.log
    again = serve(dsn)
    with Store(again.url) as store:
        assert store.find() == [(f"k{number}", b"x" * 1000) for number in range(5)]


def test_an_idle_service_stops_at_once(serve, dsn):
    # Both what an idle connection may last and the grace are longer than this waits.
    server = serve(dsn, env={"RSTORED_SHUTDOWN_GRACE_SECONDS": "600"})
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/healthz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS_MAX) == 0
    with pytest.raises(StoreNotAvailableError), Store(server.url, retries=0) as store:
        store.get("k")


def test_a_stop_under_load_loses_no_acknowledged_write(serve, dsn):
    server = serve(dsn)
    acknowledged, writers = start_writers(server.url)
    until(lambda: all(mine["es"] > 20 for mine in acknowledged))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS_MAX) == 0
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()
    check_acknowledged(serve(dsn), acknowledged)


def test_what_is_left_behind_is_one_whole_database(serve, dsn, tmp_path):
    server = serve(dsn)
    with Store(server.url, frozen=False) as store:
        store.set("k", 1)
    server.stop()
    assert server.process.returncode == 0
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".log")] == ["store.db"]
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    connection.close()


# --- crashing ----------------------------------------------------------------------------------------------


def start_writers(url: str) -> tuple[list[dict[str, int]], list[threading.Thread]]:
    """Writers that go on until the service is gone, and what each was acknowledged last."""
    acknowledged: list[dict[str, int]] = [{"kv": -1, "ts": -1, "es": -1} for _ in range(4)]

    def write(number: int) -> None:
        mine = acknowledged[number]
        with contextlib.suppress(httpx2.HTTPError), httpx2.Client(base_url=url, timeout=10) as http:
            for count in range(100_000):
                if not http.put(f"/kv/{number}-{count}", json=count).is_success:
                    return
                mine["kv"] = count
                body = {"points": [[count * 10 + offset, count] for offset in range(10)]}
                if not http.post(f"/ts/{number}/range", json=body).is_success:
                    return
                mine["ts"] = count
                event = {"item": "n", "op": "add", "value": 1} if count else {"item": "n", "value": 0}
                if not http.post(f"/es/{number}/events", json={"events": [event]}).is_success:
                    return
                mine["es"] = count

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    return acknowledged, writers


def check_acknowledged(server, acknowledged: list[dict[str, int]]) -> None:
    """Everything that was acknowledged is there; what was under way is there whole or not at all."""
    with Store(server.url) as store:
        pairs = dict(store.find())
        for number, mine in enumerate(acknowledged):
            assert mine["es"] > 0, "no write was acknowledged at all"
            written = {int(key.split("-")[1]): value for key, value in pairs.items() if key.startswith(f"{number}-")}
            assert all(key == value for key, value in written.items())
            assert len(written) in (mine["kv"] + 1, mine["kv"] + 2)
            points = store.range(str(number))
            assert points == [(t, t // 10) for t in range(len(points))]
            assert len(points) in ((mine["ts"] + 1) * 10, (mine["ts"] + 2) * 10)
            count = store.current(str(number))["n"]
            assert count in (mine["es"], mine["es"] + 1)
            assert len(store.events(str(number))) == count + 1


def test_kill_9_loses_no_acknowledged_write(serve, dsn, tmp_path):
    server = serve(dsn)
    acknowledged, writers = start_writers(server.url)
    until(lambda: all(mine["es"] > 20 for mine in acknowledged))
    server.process.send_signal(signal.SIGKILL)
    assert server.process.wait(SECONDS_MAX) == -signal.SIGKILL
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()
    again = serve(dsn)
    check_acknowledged(again, acknowledged)
    with Store(again.url, frozen=False) as store:
        store.set("after", 1)
        assert store.get("after") == 1
    again.stop()
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_client_survives_a_restart(serve, dsn):
    server = serve(dsn)
    with Store(server.url, "space", frozen=False, retries=8) as store:
        store.set("k", 1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(SECONDS_MAX)
        timer = threading.Timer(0.4, serve, args=(dsn,), kwargs={"port": server.port})
        timer.start()
        try:
            assert store.get("k") == 1
            store.set("k", 2)
            assert store.get("k") == 2
        finally:
            timer.join()


# --- starting ----------------------------------------------------------------------------------------------


def refused(serve, dsn: str, *words: str, **options) -> str:
    """The service does not start, and says so in one clear line that has these words; returns the line."""
    server = serve(dsn, wait=False, **options)
    assert server.process.wait(SECONDS_MAX) not in (0, None)
    lines = [line for line in server.log.splitlines() if line.strip()]
    assert len(lines) == 1, server.log
    assert "Traceback" not in lines[0]
    for word in words:
        assert word.lower() in lines[0].lower(), lines[0]
    return lines[0]


def test_a_missing_folder(serve, tmp_path):
    refused(serve, f"sqlite:///{tmp_path}/nowhere/store.db", "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_in_place_of_the_file(serve, tmp_path):
    (tmp_path / "store.db").mkdir()
    refused(serve, f"sqlite:///{tmp_path}/store.db", "store.db")


def give_up_override() -> None:
    """Let permissions bind this process although it is root's (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)."""
    ctypes.CDLL(None).prctl(24, 1)


def test_a_read_only_file(serve, dsn, tmp_path):
    server = serve(dsn)
    server.stop()
    path = tmp_path / "store.db"
    before = path.read_bytes()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        if os.geteuid() == 0:
            # Permissions do not bind root: give them up.
            refused(serve, dsn, "store.db", preexec=give_up_override)
        else:
            refused(serve, dsn, "store.db")
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is not a database" * 500, b"SQLite format 3\0" + b"\xff" * 5000, b"x"])
def test_a_file_that_is_not_a_database(serve, dsn, tmp_path, content):
    (tmp_path / "store.db").write_bytes(content)
    refused(serve, dsn, "store.db")
    assert (tmp_path / "store.db").read_bytes() == content


def test_a_corrupt_database(serve, dsn, tmp_path):
    server = serve(dsn)
    with Store(server.url, frozen=False) as store:
        store.set_many({f"k{number}": "x" * 500 for number in range(200)})
    server.stop()
    path = tmp_path / "store.db"
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(content)
    refused(serve, dsn, "store.db")
    assert path.read_bytes() == content


def test_the_database_of_another_program(serve, dsn, tmp_path):
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = (tmp_path / "store.db").read_bytes()
    refused(serve, dsn)
    assert (tmp_path / "store.db").read_bytes() == before


def test_a_port_in_use(serve, dsn):
    server = serve(dsn)
    refused(serve, dsn, str(server.port), port=server.port)
    assert httpx2.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize("dsn", ["nonsense", "mysql://localhost/db", "", "sqlite://", "http://127.0.0.1"])
def test_an_unknown_dsn(serve, dsn):
    refused(serve, dsn)


def test_a_wrong_setting(serve, dsn):
    refused(serve, dsn, "page_size_max", limits={"PAGE_SIZE_MAX": "many"})
    refused(serve, dsn, "value_bytes_max", limits={"VALUE_BYTES_MAX": -5})


def test_a_public_address_without_tokens_is_refused_and_leaves_no_store(serve, dsn, tmp_path):
    refused(serve, dsn, "rstored token create", host="0.0.0.0")
    refused(serve, dsn, "--insecure", host="0.0.0.0")
    assert not (tmp_path / "store.db").exists()
    # Nor is it served from a store that is there and open.
    serve(dsn).stop()
    refused(serve, dsn, "rstored token create", host="0.0.0.0")


def test_a_public_address_with_tokens_is_served_with_a_warning(serve, dsn):
    command = [sys.executable, "-m", "rstored", "token", "create", "--namespace", "*", "--access", "read"]
    made = subprocess.run([*command, "--dsn", dsn], capture_output=True, text=True, check=True)
    for options in ({}, {"env": {"RSTORED_ADMIN_TOKEN": "x" * 32}}):
        server = serve(dsn, host="0.0.0.0", **options)
        url = f"http://127.0.0.1:{server.port}"
        assert httpx2.get(f"{url}/kv").status_code == 401
        token = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert httpx2.get(f"{url}/kv", headers=token).status_code == 200
        assert "unencrypted" in server.log
        server.stop()


def test_a_store_that_is_said_to_be_closed_waits_for_its_first_token(serve, dsn):
    """With --insecure as well, as a container may be started."""
    server = serve(dsn, host="0.0.0.0", env={"RSTORED_CLOSED": "true", "RSTORED_INSECURE": "true"})
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        assert http.get("/kv").status_code == 401
        assert http.get("/readyz").status_code == 503
        assert "tokens-lost" in server.log
        command = [sys.executable, "-m", "rstored", "token", "create", "--namespace", "*", "--access", "read"]
        made = subprocess.run([*command, "--dsn", dsn], capture_output=True, text=True, check=True)
        assert http.get("/kv", headers={"Authorization": f"Bearer {made.stdout.strip()}"}).status_code == 200
        assert http.get("/readyz").status_code == 200
        assert http.get("/kv").status_code == 401


def test_an_open_store_that_listens_everywhere_answers_at_its_names_only(serve, dsn):
    server = serve(dsn, host="0.0.0.0", env={"RSTORED_INSECURE": "true", "RSTORED_HOSTS": "rstored"})
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        for host, status in (("rstored:8000", 200), ("localhost", 200), ("attacker.example", 421)):
            assert http.get("/kv", headers={"Host": host}).status_code == status
        strange = {"Origin": "https://attacker.example"}
        assert http.post("/kv", content=b'{"set": [{"key": "k", "value": 1}]}', headers=strange).status_code == 403
        assert http.get("/kv").json()["items"] == []


def test_an_admin_token_that_is_weak_is_refused_and_not_shown(serve, dsn):
    for weak in ("short-secret", "x" * 31, "x" * 40 + " ", "\u00e9" * 40):
        assert weak not in refused(serve, dsn, "RSTORED_ADMIN_TOKEN", env={"RSTORED_ADMIN_TOKEN": weak})


def test_two_processes_that_start_at_once_share_one_new_file(serve, dsn):
    servers = [serve(dsn, wait=False) for _ in range(3)]
    for server in servers:
        server.wait_until_ready()
    for number, server in enumerate(servers):
        with Store(server.url, frozen=False) as store:
            store.set(f"k{number}", number)
    with Store(servers[0].url) as store:
        assert store.find() == [("k0", 0), ("k1", 1), ("k2", 2)]


# --- health, metrics, logs ---------------------------------------------------------------------------------


def test_health_and_readiness(serve, dsn, tmp_path):
    server = serve(dsn)
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}
        (tmp_path / "store.db").rename(tmp_path / "away.db")
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "backend-unavailable")
        assert http.get("/healthz").status_code == 200
        (tmp_path / "away.db").rename(tmp_path / "store.db")
        assert http.get("/readyz").status_code == 200


def test_a_draining_service_is_alive_but_not_ready(serve, dsn):
    server = serve(dsn)
    connection, rest = slow_put(server.url, "/kv/k", 1000)
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/readyz").status_code == 200
        server.wait_until_read()
        server.process.send_signal(signal.SIGTERM)
        server.wait_until_stopping()
        # The connection is still open; a new one is no longer taken.
        with contextlib.suppress(httpx2.TransportError):
            answer = http.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "shutting-down")
    connection.sendall(rest)
    assert connection.recv(4096).startswith(b"HTTP/1.1 201")
    connection.close()
    assert server.process.wait(SECONDS_MAX) == 0


@pytest.mark.parametrize("proxy", [{}, {"RSTORED_TRUSTED_PROXIES": "127.0.0.1"}])
def test_every_line_about_a_request_has_its_clients_address(serve, dsn, tmp_path, proxy):
    """The one that the limits of a client apply to: behind a trusted proxy the forwarded one."""
    server = serve(dsn, env={"RSTORED_ACCESS_LOG": "true", **proxy})
    client = "198.51.100.7" if proxy else "127.0.0.1"
    with httpx2.Client(base_url=server.url, headers={"X-Forwarded-For": "198.51.100.7"}) as http:
        for path, status in (("/ns/team-a/kv/k", 404), ("/nowhere", 404)):
            assert http.get(path).status_code == status
        (tmp_path / "store.db").rename(tmp_path / "away.db")
        assert http.get("/readyz").status_code == 503
        (tmp_path / "away.db").rename(tmp_path / "store.db")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        while connection.recv(4096):
            pass
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    requests = [line for line in lines if line["logger"] == "rstored.requests"]
    assert [line["message"] for line in requests] == ["request", "request", "backend-unavailable", "request"]
    assert {line["client"] for line in requests} == {client}
    assert requests[0]["namespace"] == "team-a"
    # What is not a request comes from whoever is connected.
    assert [line["client"] for line in lines if line["message"] == "malformed request"] == ["127.0.0.1"]


def test_metrics(serve, dsn):
    server = serve(dsn)
    with httpx2.Client(base_url=server.url) as http:
        for number in range(7):
            http.put(f"/ns/space/kv/metric-key-{number}", json=number)
        for _ in range(3):
            http.get("/ns/space/kv/metric-key-1")
        http.get("/ns/space/kv/absent")
        http.get("/nowhere/at/all")
        http.post("/kv", content=b"{")
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)", text, re.MULTILINE)
    counts = {
        (
            dict(re.findall(r'(\w+)="([^"]*)"', labels)).get("route"),
            dict(re.findall(r'(\w+)="([^"]*)"', labels)).get("status"),
        ): float(value)
        for name, labels, value in samples
        if name.endswith(("_count", "_total"))
        if "route=" in labels and "PUT" in labels
    }
    assert counts["/ns/{namespace}/kv/{key}", "201"] == 7, counts
    assert re.search(r'route="/ns/\{namespace\}/kv/\{key\}"[^\n]*status="404"', text) or re.search(
        r'status="404"[^\n]*route="/ns/\{namespace\}/kv/\{key\}"', text
    )
    assert "_bucket" in text
    assert "batch" in text
    assert "backend" in text
    assert "metric-key" not in text, "a key became a label: labels must not grow with the data"
    assert "nowhere" not in text


def test_logs_have_request_ids_and_no_values(serve, dsn):
    server = serve(dsn, env={"RSTORED_ACCESS_LOG": "true", "RSTORED_LOG_LEVEL": "debug"})
    secret, token = secrets.token_hex(16), secrets.token_hex(16)
    request_id = f"test-{secrets.token_hex(8)}"
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}) as http:
        answer = http.put("/kv/k", json=secret, headers={"X-Request-Id": request_id})
        assert answer.headers["x-request-id"] == request_id
        generated = http.get("/kv/k").headers["x-request-id"]
        assert generated
        http.post("/ts/s/range", json={"points": [[1, secret]]})
        http.post("/es/e/events", json={"events": [{"item": "a", "value": secret}]})
        http.post("/es/e/events", json={"events": [{"item": "a", "op": "sub", "value": secret}]})
        http.put("/kv/k", content=f'"{secret}'.encode(), headers={"Content-Type": "application/json"})
        http.post("/kv", content=f'{{"set": "{secret}"}}'.encode(), headers={"Content-Type": "application/json"})
        for wrong in ("a b", "x" * 500, ""):
            echoed = http.get("/healthz", headers={"X-Request-Id": wrong}).headers["x-request-id"]
            assert echoed != wrong or wrong == "a b"
            assert echoed
        evil = http.get("/healthz", headers={"X-Request-Id": "a\tb"}).headers["x-request-id"]
        assert "\t" not in evil
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines() if line.strip()]
    ids = [line.get("request_id") for line in lines]
    assert request_id in ids
    assert generated in ids
    assert secret not in server.log
    assert token not in server.log
    assert all({"time", "level", "message"} <= set(line) for line in lines)


def test_problems_and_errors_show_no_secret(serve, dsn):
    server = serve(dsn)
    secret = secrets.token_hex(16)
    requests = [
        ("PUT", "/kv/k", f'"{secret}', "application/json"),
        ("POST", "/kv", f'{{"set": [{{"key": "k", "value": "{secret}", "colour": 1}}]}}', "application/json"),
        ("POST", "/kv", f'{{"{secret}": 1}}', "application/json"),
        (
            "POST",
            "/kv",
            f'{{"set": [{{"key": "k", "value": "{secret}", "encoding": "sealed"}}, 5]}}',
            "application/json",
        ),
        ("POST", "/ts/s/range", f'{{"points": [["{secret}", 1]]}}', "application/json"),
        ("POST", "/ts/s/range", f"timestamp,value,encoding\n1,{secret},\n", "text/csv"),
        ("POST", "/ts/s/range", f"[1, {secret}]\n", "application/x-ndjson"),
        (
            "POST",
            "/es/e/events",
            f'{{"events": [{{"item": "a", "op": "add", "value": "{secret}"}}]}}',
            "application/json",
        ),
    ]
    with httpx2.Client(base_url=server.url) as http:
        for method, path, body, media_type in requests:
            answer = http.request(method, path, content=body.encode(), headers={"Content-Type": media_type})
            assert 400 <= answer.status_code < 500, answer.text
            if f'{{"{secret}"' not in body:
                assert secret not in answer.text, (path, answer.text)
    server.stop()
    assert secret not in server.log
