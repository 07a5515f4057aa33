"""Clients of two service processes on one store see one order of what happened to each thing, also while one is killed.

``make crash-test`` records longer histories and kills more often.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from tests.conformance.backends import BACKENDS
from tests.crash.workload import KILLS, PLANTED
from tests.faults.load import BOUND_SECONDS, HEAL_SECONDS
from tests.linearizability import Operation, violation

pytestmark = pytest.mark.anyio

CLIENTS = 6
PAUSE_SECONDS_MAX = 0.01
RESTARTS = max(1, KILLS // 10)
"""How often one of the two is killed."""

Request = tuple[str, str, dict[str, Any]]


class Pair:
    """A key: read, set, deleted, compared and set. Every value is written once, so that its ETag stands for it."""

    initial = None

    def __init__(self, key: str) -> None:
        self._path = f"/kv/{key}"
        self._etags: dict[int, str] = {}

    @staticmethod
    def step(state: Any, action: Any) -> tuple[Any, Any]:
        match action:
            case ("get",):
                return state, state
            case ("set", value):
                return value, True
            case ("compare-and-set", expected, value):
                return (value, True) if state == expected else (state, False)
            case ("delete",):
                return None, True
        raise AssertionError(action)

    def draw(self, chance: random.Random, number: int, seen: Any) -> Any:
        known = seen is None or seen in self._etags
        kinds = [("get",), ("get",), ("set", number), ("delete",)]
        return chance.choice([*kinds, *[("compare-and-set", seen, number)] * (6 if known else 0)])

    def request(self, action: Any) -> Request:
        match action:
            case ("get",):
                return "GET", self._path, {}
            case ("delete",):
                return "DELETE", self._path, {}
            case ("compare-and-set", None, value):
                return "PUT", self._path, {"json": value, "headers": {"If-None-Match": "*"}}
            case ("compare-and-set", expected, value):
                return "PUT", self._path, {"json": value, "headers": {"If-Match": self._etags[expected]}}
        return "PUT", self._path, {"json": action[1]}

    def answer(self, action: Any, response: httpx2.Response) -> Any:
        if action[0] == "get":
            assert response.status_code in (200, 404), response.text
            if response.status_code == 404:
                return None
            self._etags[response.json()] = response.headers["etag"]
            return response.json()
        assert response.status_code in (201, 204, 412), response.text
        if "etag" in response.headers and response.status_code != 412:
            self._etags[action[-1]] = response.headers["etag"]
        return response.status_code != 412


class Point:
    """A point of a series whose other points change meanwhile: written, read and removed."""

    initial = None

    def __init__(self, timestamp: int) -> None:
        self._timestamp = timestamp

    @staticmethod
    def step(state: Any, action: Any) -> tuple[Any, Any]:
        match action:
            case ("extend", value):
                return value, 1
            case ("remove",):
                return None, int(state is not None)
        return state, state

    def draw(self, chance: random.Random, number: int, seen: Any) -> Any:
        return chance.choice([("range",), ("range",), ("extend", number), ("extend", number), ("remove",)])

    def request(self, action: Any) -> Request:
        path = f"/ts/series/range?start={self._timestamp}&end={self._timestamp}"
        match action:
            case ("extend", value):
                return "POST", "/ts/series/range", {"json": {"points": [[self._timestamp, value]]}}
            case ("remove",):
                return "DELETE", path, {}
        return "GET", path, {}

    def answer(self, action: Any, response: httpx2.Response) -> Any:
        assert response.status_code == 200, response.text
        found = response.json()
        if action[0] == "range":
            return found["points"][0][1] if found["points"] else None
        return found["points" if action[0] == "extend" else "removed"]


class Sequence:
    """An event sequence of one item: added to, set at a revision, read, and deleted with all its events."""

    initial = None
    _REFUSALS: ClassVar = {"unfoldable-event", "revision-conflict", "sequence-not-found"}

    def __init__(self, key: str) -> None:
        self._path = f"/es/{key}"

    @staticmethod
    def step(state: Any, action: Any) -> tuple[Any, Any]:
        revision, total = state or (0, None)
        match action:
            case ("add", n):
                after = (revision + 1, total and total + n)
                return (after, after) if state else (state, "unfoldable-event")
            case ("set", expected, n):
                after = (revision + 1, n)
                return (after, after) if expected in (None, revision) else (state, "revision-conflict")
            case ("delete",):
                return None, revision
        return state, state or "sequence-not-found"

    def draw(self, chance: random.Random, number: int, seen: Any) -> Any:
        revision = seen[0] if isinstance(seen, tuple) else 0
        often = [("current",), ("add", number), ("set", revision, number)]
        return chance.choice([*often * 4, ("set", None, number), ("delete",)])

    def request(self, action: Any) -> Request:
        match action:
            case ("current",):
                return "GET", f"{self._path}/current", {}
            case ("delete",):
                return "DELETE", f"{self._path}/events", {}
            case ("add", n):
                return "POST", f"{self._path}/events", {"json": {"events": [{"item": "n", "op": "add", "value": n}]}}
        body = {"events": [{"item": "n", "value": action[2]}], "revision": action[1]}
        return "POST", f"{self._path}/events", {"json": body}

    def answer(self, action: Any, response: httpx2.Response) -> Any:
        found = response.json()
        if response.status_code in (404, 409):
            assert found["code"] in self._REFUSALS, response.text
            return found["code"]
        assert response.status_code == 200, response.text
        return found["removed"] if action[0] == "delete" else (found["revision"], found["state"]["n"])


class Recorder:
    """Clients that do things to some objects at once, and the history of each object."""

    def __init__(self, seed: int, urls: list[str]) -> None:
        self.urls = urls
        self.objects: dict[str, Pair | Point | Sequence] = {f"pair {n}": Pair(f"k{n}") for n in range(2)}
        self.objects |= {f"point {n}": Point(n) for n in range(2)} | {
            f"sequence {n}": Sequence(f"s{n}") for n in range(2)
        }
        self.histories: dict[str, list[Operation]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._stopping = asyncio.Event()

    async def work(self, number: int) -> None:
        """Be a client of the one process or of the other until it is told to stop."""
        chance = random.Random(f"{self._seed}-{number}")
        seen: dict[str, Any] = {}
        async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
            for n in itertools.count():
                if self._stopping.is_set():
                    return
                await asyncio.sleep(chance.uniform(0, PAUSE_SECONDS_MAX))
                name = chance.choice(list(self.objects))
                thing = self.objects[name]
                action = thing.draw(chance, 1 + number + n * CLIENTS, seen.get(name))
                method, path, rest = thing.request(action)
                url = self.urls[number % len(self.urls)]
                called = time.monotonic()
                try:
                    response = await client.request(method, f"{url}/ns/histories{path}", **rest)
                except httpx2.ConnectError:
                    continue  # It was never sent.
                except httpx2.TransportError:
                    response = None
                if response is None or response.status_code == 503:
                    self.histories[name].append(Operation(called, called, action))
                    self.counts["unknown"] += 1
                    continue
                returned = time.monotonic()
                answer = thing.answer(action, response)
                self.histories[name].append(Operation(called, returned, action, answer))
                self.counts["answered"] += 1
                self.counts["refused"] += answer is False or isinstance(answer, str)
                # What a client saw last is what it expects to be there.
                if action[0] in ("get", "current") or (action[0] in ("set", "compare-and-set") and answer):
                    seen[name] = action[-1] if answer is True else answer

    async def answered(self, more: int) -> None:
        """Wait until so many more operations are."""
        goal = self.counts["answered"] + more
        async with asyncio.timeout(HEAL_SECONDS):
            while self.counts["answered"] < goal:
                await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._stopping.set()

    def check(self) -> None:
        for name, history in self.histories.items():
            found = violation(history, self.objects[name].step, self.objects[name].initial)
            assert found is None, f"{name} is not linearisable: {found}"


async def recorded(serve, dsn: str, seed: int, restarts: int, **options: Any) -> Recorder:
    services = [await asyncio.to_thread(serve, dsn, **options) for _ in range(2)]
    recorder = Recorder(seed, [service.url for service in services])
    chance = random.Random(seed)
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(recorder.work(number))
        for _ in range(restarts):
            await recorder.answered(chance.randrange(100, 200))
            which = chance.randrange(2)
            services[which].process.kill()
            await asyncio.to_thread(services[which].close)
            services[which] = await asyncio.to_thread(serve, dsn, **options)
            recorder.urls[which] = services[which].url
        await recorder.answered(200)
        recorder.stop()
    return recorder


@pytest.mark.parametrize("name", BACKENDS)
async def test_every_history_is_linearisable(serve, tmp_path: Path, name: str, seed: int) -> None:
    case = BACKENDS[name]
    if reason := case.missing():
        pytest.skip(reason)
    recorder = await recorded(serve, case.fresh(tmp_path), seed, RESTARTS)
    recorder.check()
    counts = ", ".join(f"{n} {what}" for what, n in recorder.counts.items())
    print(f"{name}: {RESTARTS} kills, {counts}; the histories of {len(recorder.histories)} things are linearisable")
    # They did get into each other's way.
    assert recorder.counts["refused"] > 0


@pytest.mark.parametrize(("bug", "found"), [("stale-reads", "pair|point|sequence"), ("check-then-put", "pair")])
async def test_the_checker_finds_a_planted_bug(serve, tmp_path: Path, bug: str, found: str, seed: int) -> None:
    options = {"prefix": [sys.executable, str(PLANTED), bug]}
    recorder = await recorded(serve, f"sqlite:///{tmp_path}/store.db", seed, 0, **options)
    with pytest.raises(AssertionError, match=rf"({found}) \d is not linearisable") as raised:
        recorder.check()
    print(f"{bug}: {raised.value!s:.300}")
