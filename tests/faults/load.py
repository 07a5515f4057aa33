"""Clients that write unique things without pause while a backend fails, and know what must be there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from rstored.engine.batching import WAIT_SECONDS

BOUND_SECONDS = WAIT_SECONDS + 35
"""Within this the service answers, whatever its backend does; the rest is for a busy machine, and is far less than a
request may take."""

RECOVERY_SECONDS = 60.0
"""Within this it writes and reads again once its backend does, seen by one client."""

HEAL_SECONDS = 60.0
_PAUSE_SECONDS = 0.05


def check_unavailable(response: httpx2.Response) -> None:
    """The answer is a 503 problem that says when to come again."""
    assert response.status_code == 503, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "backend-unavailable", response.text
    assert int(response.headers["retry-after"]) >= 1


async def recovered(client: httpx2.AsyncClient, url: str) -> None:
    """Wait until the service writes and reads again."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            wrote = await client.put(f"{url}/kv/healed", json=1)
            read = await client.get(f"{url}/kv/healed")
            if wrote.status_code in (201, 204) and read.status_code == 200:
                return
            check_unavailable(wrote if wrote.status_code == 503 else read)
            await asyncio.sleep(0.1)


class Load:
    """Writes of every sort from some clients at once.

    ``acknowledged`` has what the service said yes to and when; ``unknown`` what it answered with 503: that may have
    happened, but once at most. With ``lossy`` the backend may forget what it acknowledged a moment before it failed.
    """

    def __init__(self, url: str, *, clients: int = 8, lossy: bool = False) -> None:
        self._client = httpx2.AsyncClient(
            base_url=f"{url}/ns/load-{secrets.token_hex(4)}",
            timeout=BOUND_SECONDS + 10,
            limits=httpx2.Limits(max_connections=clients + 4),
        )
        self._clients = clients
        self._lossy = lossy
        self._stopping = asyncio.Event()
        self._numbers = itertools.count(1)
        self.acknowledged: dict[tuple[str, int], float] = {}
        self.unknown: set[tuple[str, int]] = set()
        self.unavailable = 0
        self.slowest = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """The clients work until the end of this, and all is then as it must be unless it is left with an error."""
        async with self._client:
            for sequence in ("s0", "s1"):
                first = {"events": [{"item": "total", "value": 0}], "timestamp": 0}
                response = await self._client.post(f"/es/{sequence}/events", json=first)
                assert response.status_code == 200, response.text
            async with asyncio.TaskGroup() as group:
                for number in range(self._clients):
                    group.create_task(self._work(number))
                try:
                    yield self
                finally:
                    self._stopping.set()
            assert self.slowest < BOUND_SECONDS

    async def healthy(self) -> None:
        """Wait until every client has written again."""
        await self._until(lambda before: len(self.acknowledged) >= before + 12 * self._clients, len(self.acknowledged))

    async def troubled(self) -> None:
        """Wait until a client got the answer that the backend is away."""
        await self._until(lambda before: self.unavailable > before, self.unavailable)

    async def _until(self, reached: Callable[[int], bool], before: int) -> None:
        async with asyncio.timeout(HEAL_SECONDS + BOUND_SECONDS):
            while not reached(before):
                await asyncio.sleep(0.02)

    # --- a client ------------------------------------------------------------------------------------------

    async def _work(self, number: int) -> None:
        register = f"register-{number}"
        floor, ceiling = 0, 0
        for n in self._numbers:
            if self._stopping.is_set():
                return
            await self._write(("kv", n), "PUT", f"/kv/key-{n:08}", (201,), json=n)
            ceiling = n
            if await self._write(("register", n), "PUT", f"/kv/{register}", (201, 204), json=n):
                floor = n
            found = await self._send("GET", f"/kv/{register}", (200, 404))
            if found is not None:
                value = found.json() if found.status_code == 200 else 0
                assert self._lossy or floor <= value <= ceiling, "a read saw a write go back"
                assert value <= ceiling
                floor = value
            if await self._write(("ts", n), "POST", "/ts/series/range", (200,), json={"points": [[n, f"v{n}"]]}):
                found = await self._send("GET", f"/ts/series/range?start={n}&end={n}", (200,))
                if found is not None and not self._lossy:
                    assert found.json() == {"points": [[n, f"v{n}"]]}
            await self._apply(number, n)
            await self._count(n)

    async def _apply(self, number: int, n: int) -> None:
        """Record an event; every other client sends it again until the service answers that the event is there."""
        body = {"events": [{"item": f"n{n}", "value": n}, {"item": "total", "op": "add", "value": 1}]}
        headers = {"Idempotency-Key": f"apply-{n}"}
        while not await self._write(("es", n), "POST", f"/es/s{n % 2}/events", (200,), json=body, headers=headers):
            if number % 2 or self._stopping.is_set():
                return

    async def _count(self, n: int) -> None:
        """Count a shared number up by one, if nobody else does just then."""
        found = await self._send("GET", "/kv/counter", (200, 404))
        if found is None:
            return
        condition = {"If-Match": found.headers["etag"]} if found.status_code == 200 else {"If-None-Match": "*"}
        value = found.json() + 1 if found.status_code == 200 else 1
        headers = {**condition, "Idempotency-Key": f"count-{n}"}
        await self._write(("count", n), "PUT", "/kv/counter", (201, 204, 412), json=value, headers=headers)

    async def _write(
        self, what: tuple[str, int], method: str, path: str, expected: tuple[int, ...], **body: Any
    ) -> bool:
        response = await self._send(method, path, expected, **body)
        if response is None:
            self.unknown.add(what)
            return False
        if response.status_code != 412:
            self.acknowledged[what] = time.monotonic()
            self.unknown.discard(what)
        return True

    async def _send(self, method: str, path: str, expected: tuple[int, ...], **body: Any) -> httpx2.Response | None:
        started = time.monotonic()
        response = await self._client.request(method, path, **body)
        self.slowest = max(self.slowest, time.monotonic() - started)
        if response.status_code == 503:
            check_unavailable(response)
            self.unavailable += 1
            await asyncio.sleep(_PAUSE_SECONDS)
            return None
        assert response.status_code in expected, (method, path, response.status_code, response.text)
        return response

    # --- afterwards ----------------------------------------------------------------------------------------

    async def verify(self, *, lost_after: float | None = None, lost_before: float = 0.0) -> None:
        """Everything acknowledged is there exactly once; what is unknown once at most; and nothing else.

        What was acknowledged between the two moments may be lost.
        """
        base = httpx2.AsyncClient(base_url=self._client.base_url, timeout=BOUND_SECONDS)
        async with base as client:
            values = await self._values(client)
            points = await get_json(client, "/ts/series/range")
            found = {
                "kv": [int(key[4:]) for key in values if key.startswith("key-")],
                "ts": [t for t, _ in points["points"]],
                "es": [],
            }
            assert all(values[f"key-{n:08}"] == n for n in found["kv"])
            assert all(value == f"v{t}" for t, value in points["points"])
            for sequence in ("s0", "s1"):
                events = (await get_json(client, f"/es/{sequence}/events"))["events"]
                counted = [event["value"] for event in events if event["item"] != "total"]
                state = (await get_json(client, f"/es/{sequence}/current"))["state"]
                assert state.pop("total") == len(counted), "events and state differ"
                assert state == {f"n{n}": n for n in counted}
                assert len(events) == 2 * len(counted) + 1
                found["es"] += counted
        for kind, numbers in found.items():
            present = set(numbers)
            assert len(numbers) == len(present), f"{kind}: something is there twice"
            sure = {n for what, n in self.acknowledged if what == kind}
            unknown = {n for what, n in self.unknown if what == kind}
            missing = {
                n
                for n in sure - present
                if lost_after is None or not lost_after <= self.acknowledged[kind, n] <= lost_before
            }
            assert not missing, f"{kind}: acknowledged and gone: {sorted(missing)[:10]}"
            assert present <= sure | unknown, f"{kind}: refused and there: {sorted(present - sure - unknown)[:10]}"
        if lost_after is None:
            acknowledged = sum(kind == "count" for kind, _ in self.acknowledged)
            unknown_counts = sum(kind == "count" for kind, _ in self.unknown)
            assert acknowledged <= values["counter"] <= acknowledged + unknown_counts

    async def _values(self, client: httpx2.AsyncClient) -> dict[str, Any]:
        values: dict[str, Any] = {}
        cursor: str | None = ""
        while cursor is not None:
            page = await get_json(client, f"/kv?values=true{f'&cursor={cursor}' if cursor else ''}")
            for item in page["items"]:
                assert item["key"] not in values
                values[item["key"]] = item["value"]
            cursor = page["cursor"]
        return values


async def get_json(client: httpx2.AsyncClient, path: str) -> Any:
    """What a GET answers, which must succeed."""
    response = await client.get(path)
    assert response.status_code == 200, (path, response.text)
    return response.json()


class Applies:
    """Events of one sequence, each sent again under its id until it is acknowledged."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = f"{url}/es/events/events"
        self._acknowledged: set[int] = set()
        self.next = 1

    async def apply(self) -> int:
        """Apply the event with the number ``next``; returns the status of the first answer."""
        n, self.next = self.next, self.next + 1
        body, headers = {"events": [{"item": f"n{n}", "value": n}]}, {"Idempotency-Key": f"id-{n}"}
        statuses: list[int] = []
        async with asyncio.timeout(RECOVERY_SECONDS):
            while 200 not in statuses:
                response = await self._client.post(self._url, json=body, headers=headers)
                statuses.append(response.status_code)
                if response.status_code != 200:
                    check_unavailable(response)
        self._acknowledged.add(n)
        return statuses[0]

    async def verify(self) -> None:
        """Each of them happened once, and nothing else did."""
        events = (await self._client.get(self._url)).json()["events"]
        assert sorted(event["value"] for event in events) == sorted(self._acknowledged)
