"""Service processes whose machines' clocks are wrong: no live key is deleted, and no write happens twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.conformance.backends import BACKENDS

from rstore.core.encodings import Encoding, Value
from rstored.backends import backend_class
from rstored.backends.abc import Backend, HeadRead, Kind, Place
from rstored.backends.clock import unix_ms
from rstored.engine.engine import Engine

pytestmark = pytest.mark.anyio

SHARED = [name for name in BACKENDS if name != "sqlite"]
"""The backends that have a clock of their own."""

AHEAD = {"two hours ahead": 7_200, "22 minutes ahead": 1_320, "two hours behind": -7_200}
LIVE_SECONDS = 3_600
SECONDS_MAX = 30.0
TOKEN = "a" * 40


@pytest.fixture(params=SHARED)
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if reason := BACKENDS[request.param].missing():
        pytest.skip(reason)
    return BACKENDS[request.param].fresh(tmp_path)


@pytest.fixture
def shifted(serve: Any) -> Any:
    """``shifted(dsn, seconds)`` starts a process whose clock is so far ahead."""

    def start(dsn: str, seconds: int, **options: Any) -> Any:
        # It runs before the service does anything, and everything reads the time from this module.
        wrong = (
            "import time\n"
            "_time, _time_ns = time.time, time.time_ns\n"
            f"time.time = lambda: _time() + {seconds}\n"
            f"time.time_ns = lambda: _time_ns() + {seconds} * 10**9\n"
        )
        return serve(dsn, prelude=wrong, **options)

    return start


@contextlib.asynccontextmanager
async def client(url: str, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"{url}/ns/clocks", timeout=30, headers=headers) as http:
        yield http


async def erased(backend: Backend, key: str) -> None:
    """Wait until a sweep has deleted the expired record."""
    async with asyncio.timeout(SECONDS_MAX):
        while (await backend.read([(HeadRead(Place("clocks", Kind.KV, key)),)]))[0] != [None]:
            await asyncio.sleep(0.05)


@pytest.fixture
async def storage(dsn: str, anyio_backend: str) -> AsyncIterator[Backend]:
    backend = await backend_class(dsn).open(dsn)
    yield backend
    await backend.close()


async def test_a_live_key_outlives_the_sweeps_of_a_wrong_clock(serve, shifted, dsn: str, storage: Backend) -> None:
    right = await asyncio.to_thread(serve, dsn)
    async with client(right.url) as http:
        assert (await http.put(f"/kv/live?ttl={LIVE_SECONDS}", json=1)).status_code == 201
    # From here on only the wrong one sweeps.
    await asyncio.to_thread(right.stop)
    wrong = await asyncio.to_thread(shifted, dsn, AHEAD["two hours ahead"])
    async with client(wrong.url) as http:
        assert (await http.put("/kv/brief?ttl=0.2", json=1)).status_code == 201
        assert (await http.put(f"/kv/late?ttl={LIVE_SECONDS}", json=1)).status_code == 201
        # It does sweep, and has swept after the live key was there.
        await erased(storage, "brief")
        for key in ("live", "late"):
            answer = await http.get(f"/kv/{key}")
            assert answer.status_code == 200
            left = int(answer.headers["rstore-expires"]) / 1000 - time.time()
            assert LIVE_SECONDS - 120 < left < LIVE_SECONDS + 10
    again = await asyncio.to_thread(serve, dsn)
    async with client(again.url) as http:
        assert [(await http.get(f"/kv/{key}")).status_code for key in ("live", "late", "brief")] == [200, 200, 404]


async def test_a_retry_is_applied_once_whatever_the_clocks_say(serve, shifted, dsn: str) -> None:
    services = [await asyncio.to_thread(serve, dsn)]
    services += [await asyncio.to_thread(shifted, dsn, seconds) for seconds in AHEAD.values()]
    event = {"events": [{"item": "n", "op": "add", "value": 1}]}
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(service.url)) for service in services]
        await clients[0].post("/es/e/events", json={"events": [{"item": "n", "value": 0}]})
        total = 0
        for first in clients:
            once = {"Idempotency-Key": secrets.token_hex(4)}
            answer = await first.post("/es/e/events", json=event, headers=once)
            total += 1
            assert answer.json()["state"] == {"n": total}
            # Each timestamp is the storage's, so they follow one another and are those of now.
            assert abs(answer.json()["timestamp"] / 1000 - time.time()) < SECONDS_MAX
            for http in clients:
                again = await http.post("/es/e/events", json=event, headers=once)
                assert again.json() == answer.json()
        assert (await clients[0].get("/es/e/current")).json()["state"] == {"n": total}


async def test_a_key_expires_everywhere_at_once(serve, shifted, dsn: str) -> None:
    services = [await asyncio.to_thread(serve, dsn)]
    services += [await asyncio.to_thread(shifted, dsn, seconds) for seconds in AHEAD.values()]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(service.url)) for service in services]
        for number, writer in enumerate(clients):
            await writer.put(f"/kv/k{number}?ttl=2", json=1)
            assert [(await http.get(f"/kv/k{number}")).status_code for http in clients] == [200] * len(clients)
        async with asyncio.timeout(SECONDS_MAX):
            while any([(await http.get("/kv")).json()["items"] for http in clients]):
                await asyncio.sleep(0.05)


async def test_a_token_lives_as_long_as_the_storage_says(serve, shifted, dsn: str) -> None:
    env = {"RSTORED_ADMIN_TOKEN": TOKEN}
    right = await asyncio.to_thread(serve, dsn, env=env)
    wrong = [await asyncio.to_thread(shifted, dsn, seconds, env=env) for seconds in AHEAD.values()]
    async with httpx2.AsyncClient(timeout=30) as http:
        body = {"namespaces": ["clocks"], "access": "write", "lifetime_seconds": LIVE_SECONDS}
        for maker in (right, *wrong):
            made = await http.post(f"{maker.url}/tokens", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            bearer = {"Authorization": f"Bearer {made.json()['token']}"}
            for service in (right, *wrong):
                assert (await http.get(f"{service.url}/ns/clocks/kv", headers=bearer)).status_code == 200


async def test_the_difference_is_metered_logged_and_told(serve, shifted, dsn: str) -> None:
    right, ahead, behind = (
        await asyncio.to_thread(serve, dsn),
        await asyncio.to_thread(shifted, dsn, 7_200),
        await asyncio.to_thread(shifted, dsn, -7_200),
    )
    async with httpx2.AsyncClient(timeout=30) as http:
        for service, seconds in ((right, 0), (ahead, 7_200), (behind, -7_200)):
            text = (await http.get(f"{service.url}/metrics")).text
            (metered,) = re.findall(r"^rstored_clock_ahead_seconds (\S+)$", text, re.MULTILINE)
            assert abs(float(metered) - seconds) < 5
            ready = (await http.get(f"{service.url}/readyz")).json()
            async with asyncio.timeout(SECONDS_MAX):
                while seconds and "this machine's clock is" not in service.log:
                    await asyncio.sleep(0.05)
            lines = [json.loads(line)["message"] for line in service.log.splitlines()]
            warnings = [line for line in lines if "this machine's clock is" in line]
            if seconds:
                assert ("ahead of" if seconds > 0 else "behind") in ready["warning"]
                assert ready["warning"] in warnings
            else:
                assert ready == {"status": "ready"}
                assert warnings == []


# --- the storage's own clock -------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_seconds", [7_200, -7_200])
async def test_a_storage_whose_clock_is_set_wrong_loses_nothing(dsn: str, ahead_seconds: int) -> None:
    """While it is ahead, keys seem to have expired. They are back when it is right again."""
    async with contextlib.AsyncExitStack() as stack:
        backend = await backend_class(dsn).open(dsn)
        stack.push_async_callback(backend.close)
        engine = Engine(backend)
        stack.push_async_callback(engine.stop)
        value = Value(Encoding.JSON, b"1")
        for key, ttl in (("live", LIVE_SECONDS), ("brief", 0.001)):
            await engine.kv.put("clocks", key, value=value, media_type="application/json", ttl_seconds=ttl)
        await asyncio.sleep(0.01)
        now = time.monotonic()
        backend.clock.follow(unix_ms() + ahead_seconds * 1000, now, now)
        await engine.maintenance.sweep()
        assert (await engine.kv.get("clocks", "live") is None) == (ahead_seconds > 0)
        await engine.ping()
        assert (await engine.kv.get("clocks", "live")).value == value
        assert await engine.kv.count("clocks") == 1
