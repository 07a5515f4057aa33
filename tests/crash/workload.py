"""Writers that are killed in the middle, and know afterwards what must be there.

Each writer owns some things and does one operation at a time, so it knows what they are: after a kill they are as
before the operation that was under way, or as after it, and nothing between. :func:`possible_steps` and
:class:`Holdings` are pure; :class:`Crash` does the talking and keeps the tally.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from tests.faults.load import BOUND_SECONDS, HEAL_SECONDS, get_json
from tests.knobs import knob
from tests.relevant import relevant

from rstore.core.folding import fold

KILLS = int(knob("RSTORE_CRASH_KILLS", "3"))
LONG = KILLS >= 50
PLANTED = Path(__file__).with_name("planted.py")
"""A service with a planted bug."""

SHARED = "crash"
KEYS = 60
BATCH_KEYS = 40
EXTEND_POINTS = 3_000
POINTS_SPAN = 20_000
ITEMS = 12
APPLY_ITEMS = 8
PADDING = "x" * 200

Event = tuple[int, str, str, Any]


class Holdings(NamedTuple):
    """What a writer owns. ``owned`` are the pairs of a namespace of its own, which it discards now and then."""

    pairs: dict[str, Any]
    points: dict[int, Any]
    events: list[Event]
    revision: int
    owned: dict[str, Any]


NOTHING = Holdings({}, {}, [], 0, {})


class Step(NamedTuple):
    """An operation: its request, and what the writer owns once it is done."""

    name: str
    method: str
    path: str
    after: Holdings
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    key: str | None = None


# --- what a writer may do ----------------------------------------------------------------------------------


def possible_steps(
    writer: str, serial: int, have: Holdings, etags: dict[str, str], chance: random.Random
) -> list[Callable[[], Step]]:
    """The operations of one writer, each made when it is called. Every value written is new, by its ``serial``."""
    names = [f"{writer}-{n:02}" for n in range(KEYS)]
    value = [serial, PADDING]
    shared = f"/ns/{SHARED}"

    def put() -> Step:
        key = chance.choice(names)
        headers = {}
        if key not in have.pairs:
            headers = {"If-None-Match": "*", "Idempotency-Key": f"{writer}-{serial}"}
        elif key in etags:
            headers = {"If-Match": f'"{etags[key]}"', "Idempotency-Key": f"{writer}-{serial}"}
        after = have._replace(pairs=have.pairs | {key: value})
        return Step("put", "PUT", f"{shared}/kv/{key}", after, value, headers, key)

    def delete() -> Step:
        key = chance.choice(names)
        return Step("delete", "DELETE", f"{shared}/kv/{key}", have._replace(pairs=_without(have.pairs, [key])))

    def batch() -> Step:
        chosen = chance.sample(names, BATCH_KEYS)
        sets, deletes = chosen[: BATCH_KEYS * 3 // 4], chosen[BATCH_KEYS * 3 // 4 :]
        body = {"set": [{"key": key, "value": value} for key in sets], "delete": deletes}
        pairs = _without(have.pairs, deletes) | dict.fromkeys(sets, value)
        return Step("batch", "POST", f"{shared}/kv", have._replace(pairs=pairs), body)

    def extend() -> Step:
        times = chance.sample(range(POINTS_SPAN), EXTEND_POINTS)
        text = f"{serial:040}"
        points = have.points | dict.fromkeys(times, text)
        body = {"points": [[t, text] for t in times]}
        return Step("extend", "POST", f"{shared}/ts/{writer}/range", have._replace(points=points), body)

    def remove() -> Step:
        start = chance.randrange(POINTS_SPAN)
        end = start + chance.randrange(POINTS_SPAN)
        points = {t: v for t, v in have.points.items() if not start <= t <= end}
        path = f"{shared}/ts/{writer}/range?start={start}&end={end}"
        return Step("remove", "DELETE", path, have._replace(points=points))

    def apply() -> Step:
        state = fold(have.events)
        events = []
        for item in sorted(chance.sample([f"i{n}" for n in range(ITEMS)], APPLY_ITEMS)):
            # An item begins again now and then, so that there is something to prune.
            op = "setitem" if item not in state else chance.choice(["add", "add", "setitem", "delitem"])
            events.append((serial, item, op, None if op == "delitem" else serial))
        told = [{"item": item, "op": op} | ({} if op == "delitem" else {"value": serial}) for _, item, op, _ in events]
        body = {"events": told, "timestamp": serial}
        after = have._replace(events=have.events + events, revision=have.revision + 1)
        return Step("apply", "POST", f"{shared}/es/{writer}/events", after, body, {"Idempotency-Key": str(serial)})

    def prune() -> Step:
        after = have._replace(events=relevant(have.events))
        return Step("prune", "POST", f"{shared}/es/{writer}/prune", after, {"remove": False})

    def forget() -> Step:
        return Step("forget", "DELETE", f"{shared}/es/{writer}/events", have._replace(events=[], revision=0))

    def own() -> Step:
        chosen = chance.sample(names, BATCH_KEYS)
        body = {"set": [{"key": key, "value": value} for key in chosen]}
        return Step(
            "own", "POST", f"/ns/{writer}/kv", have._replace(owned=have.owned | dict.fromkeys(chosen, value)), body
        )

    def discard() -> Step:
        return Step("discard", "DELETE", f"/ns/{writer}", have._replace(owned={}))

    often: list[Callable[[], Step]] = [put, batch, batch, extend, extend, apply, apply]
    return [*often, *often, delete, remove, prune, own, own, discard, *([forget] if serial % 5 == 0 else [])]


def _without(pairs: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    return {key: value for key, value in pairs.items() if key not in keys}


def happened(before: Holdings, step: Step | None, found: Holdings) -> bool | None:
    """Whether the step under way happened, None if there is none or it changes nothing.

    Raises ``AssertionError`` if neither explains what is found now.
    """
    if found == before:
        return None if step is None or step.after == before else False
    if step is not None and found == step.after:
        return True
    if step is not None and step.name == "prune":
        # It works in steps, each of which leaves the state as it is.
        needed = relevant(before.events)
        left = [event for event in before.events if event in found.events]
        if found == before._replace(events=left) and all(event in left for event in needed):
            return True
    raise AssertionError(f"after {step and step.name}: {_difference(before, step, found)}")


def _same(key: Any, now: dict[Any, Any], then: dict[Any, Any]) -> bool:
    return (key in now, now.get(key)) == (key in then, then.get(key))


def _difference(before: Holdings, step: Step | None, found: Holdings) -> str:
    """Where what is found is neither as before nor as after; values are left out, they are long."""
    after = step.after if step is not None else before
    old: Any
    new: Any
    now: Any
    for name, old, new, now in zip(Holdings._fields, before, after, found, strict=True):
        if now in (old, new):
            continue
        if isinstance(now, list):
            old, new, now = dict.fromkeys(old), dict.fromkeys(new), dict.fromkeys(now)
        if isinstance(now, dict):
            keys = sorted(old.keys() | new.keys() | now.keys())
            as_before = sum(_same(key, now, old) for key in keys)
            as_after = sum(_same(key, now, new) for key in keys)
            return f"of {len(keys)} {name} {as_before} are as before and {as_after} as after: half of it, or lost"
        return f"{name} was {old!r:.300}, would be {new!r:.300}, is {now!r:.300}"
    return "each part is as before or as after, but not all the same"


# --- a run -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """The checker's counts. ``happened`` and ``vanished`` are what became of the unknown; ``verified`` are things."""

    kills: int = 0
    acknowledged: int = 0
    happened: int = 0
    vanished: int = 0
    verified: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged} acknowledged, {self.happened + self.vanished} unknown "
            f"({self.happened} had happened, {self.vanished} had not), {self.verified} things verified"
        )


class Crash:
    """Writers against a service that is killed between :meth:`write` and :meth:`verify`, again and again."""

    def __init__(self, seed: int, *, writers: int = 6) -> None:
        self.tally = Tally()
        self._writers = [f"w{n}" for n in range(writers)]
        self._chance = {writer: random.Random(f"{seed}-{writer}") for writer in self._writers}
        self._have = dict.fromkeys(self._writers, NOTHING)
        self._under_way: dict[str, Step | None] = dict.fromkeys(self._writers)
        self._etags: dict[str, str] = {}
        self._serials = itertools.count(1)
        # What all write: by an apply, by a compare-and-set, and one point each.
        self._sure: dict[str, set[int]] = {name: set() for name in ("total", "counter", "points")}
        self._unknown: dict[str, set[int]] = {name: set() for name in self._sure}
        self._stopping = asyncio.Event()

    async def write(self, url: str, kill: Callable[[], Any]) -> None:
        """Write until ``kill`` has returned, and each writer to the end of its operation, whatever that is."""
        self._stopping.clear()
        limits = httpx2.Limits(max_connections=len(self._writers))
        async with (
            httpx2.AsyncClient(base_url=url, timeout=BOUND_SECONDS, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for writer in self._writers:
                group.create_task(self._work(client, writer))
            await kill()
            self.tally.kills += 1
            self._stopping.set()

    async def progress(self, operations: int) -> None:
        """Wait until so many more operations are acknowledged."""
        goal = self.tally.acknowledged + operations
        async with asyncio.timeout(HEAL_SECONDS):
            while self.tally.acknowledged < goal:
                await asyncio.sleep(0.002)

    async def _work(self, client: httpx2.AsyncClient, writer: str) -> None:
        """Do one thing after the other until it is told to stop, or does not know what became of the last."""
        chance = self._chance[writer]
        while not self._stopping.is_set():
            serial = next(self._serials)
            if serial % 4 == 0:
                known = await self._write_shared(client, serial)
            else:
                choices = possible_steps(writer, serial, self._have[writer], self._etags, chance)
                known = await self._do(client, writer, chance.choice(choices)())
            if not known:
                return

    async def _do(self, client: httpx2.AsyncClient, writer: str, step: Step) -> bool:
        self._under_way[writer] = step
        response = await _send(client, step.method, step.path, json=step.body, headers=step.headers)
        if step.key is not None:
            self._etags.pop(step.key, None)
        if response is None:
            return False
        assert response.status_code in (200, 201, 204), (step.name, response.status_code, response.text)
        if step.key is not None:
            self._etags[step.key] = response.headers["etag"].strip('"')
        elif step.name in ("batch", "delete"):
            self._etags = {key: etag for key, etag in self._etags.items() if not key.startswith(writer)}
        self._under_way[writer] = None
        self._have[writer] = step.after
        self.tally.acknowledged += 1
        return True

    async def _write_shared(self, client: httpx2.AsyncClient, serial: int) -> bool:
        """Write what the others write too."""
        path = f"/ns/{SHARED}"
        name = list(self._sure)[serial // 4 % len(self._sure)]
        if name == "counter":
            found = await _send(client, "GET", f"{path}/kv/counter")
            if found is None:
                return False
            condition = {"If-Match": found.headers["etag"]} if found.status_code == 200 else {"If-None-Match": "*"}
            value = found.json() + 1 if found.status_code == 200 else 1
            headers = condition | {"Idempotency-Key": str(serial)}
            sending = _send(client, "PUT", f"{path}/kv/counter", json=value, headers=headers)
        elif name == "total":
            events = [{"item": "total", "op": "add", "value": 1}]
            headers = {"Idempotency-Key": str(serial)}
            sending = _send(client, "POST", f"{path}/es/total/events", json={"events": events}, headers=headers)
        else:
            sending = _send(client, "POST", f"{path}/ts/points/range", json={"points": [[serial, serial]]})
        self._unknown[name].add(serial)
        response = await sending
        if response is None:
            return False
        self._unknown[name].remove(serial)
        if response.status_code != 412:
            assert response.status_code in (200, 201, 204), (name, response.status_code, response.text)
            self._sure[name].add(serial)
            self.tally.acknowledged += 1
        return True

    # --- afterwards ----------------------------------------------------------------------------------------

    async def prepare(self, url: str) -> None:
        """Make what all write, before the first kill."""
        async with httpx2.AsyncClient(base_url=f"{url}/ns/{SHARED}", timeout=BOUND_SECONDS) as client:
            first = {"events": [{"item": "total", "value": 0}], "timestamp": 0}
            assert (await client.post("/es/total/events", json=first)).status_code == 200

    async def verify(self, url: str) -> None:
        """Everything acknowledged is there, what is unknown is there whole or not at all, and all counts agree."""
        async with httpx2.AsyncClient(base_url=url, timeout=BOUND_SECONDS) as client:
            counts = {"kv": 0, "ts": 0, "es": 0}
            for writer in self._writers:
                found = await self._observe(client, writer)
                step = self._under_way[writer]
                outcome = happened(self._have[writer], step, found)
                self.tally.happened += outcome is True
                self.tally.vanished += outcome is False
                self._have[writer], self._under_way[writer] = found, None
                self.tally.verified += sum(len(part) for part in (found.pairs, found.points, found.events, found.owned))
                counts["kv"] += len(found.pairs)
                counts["ts"] += bool(found.points)
                counts["es"] += bool(found.revision)
            await self._verify_shared(client, counts)
            described = await get_json(client, f"/ns/{SHARED}")
            assert {kind: described[kind] for kind in counts} == counts, (
                "the namespace's counts are not of its contents"
            )

    async def _observe(self, client: httpx2.AsyncClient, writer: str) -> Holdings:
        """What a writer owns, having seen that everything that tells of it says the same."""
        shared = f"/ns/{SHARED}"
        pairs = await _pairs(client, f"{shared}/kv", f"{writer}-", self._etags)
        points: dict[int, Any] = dict((await get_json(client, f"{shared}/ts/{writer}/range"))["points"])
        (series,) = (await get_json(client, f"{shared}/ts?match={writer}"))["items"] or [{"points": 0}]
        told = (
            {"key": writer, "points": len(points), "first": min(points), "last": max(points)}
            if points
            else {"points": 0}
        )
        assert series == told, "a series' count and ends are not those of its points"
        events, revision = await _sequence(client, writer)
        owned = await _pairs(client, f"/ns/{writer}/kv", "", {})
        counted = await client.get(f"/ns/{writer}")
        assert (counted.json()["kv"] if counted.status_code == 200 else 0) == len(owned)
        return Holdings(pairs, points, events, revision, owned)

    async def _verify_shared(self, client: httpx2.AsyncClient, counts: dict[str, int]) -> None:
        """What all write is there once; ``counts`` goes on to what the namespace must count."""
        counted = await client.get(f"/ns/{SHARED}/kv/counter")
        points = (await get_json(client, f"/ns/{SHARED}/ts/points/range"))["points"]
        events, revision = await _sequence(client, "total")
        assert revision == len(events)
        assert all(t == value for t, value in points)
        numbers = {"counter": counted.json() if counted.status_code == 200 else 0, "total": len(events) - 1}
        counts["kv"] += counted.status_code == 200
        counts["ts"] += bool(points)
        counts["es"] += 1
        present = {t for t, _ in points}
        assert self._sure["points"] <= present <= self._sure["points"] | self._unknown["points"]
        self._settle("points", len(present & self._unknown["points"]))
        self._sure["points"] = present
        for name, number in numbers.items():
            sure = len(self._sure[name])
            assert sure <= number <= sure + len(self._unknown[name]), f"{name}: {number} after {sure} acknowledged"
            # Which of them it was makes no difference.
            self._sure[name].update(sorted(self._unknown[name])[: number - sure])
            self._settle(name, number - sure)
        self.tally.verified += len(present) + len(events) + 1

    def _settle(self, name: str, happened: int) -> None:
        self.tally.happened += happened
        self.tally.vanished += len(self._unknown[name]) - happened
        self._unknown[name].clear()


async def _send(client: httpx2.AsyncClient, method: str, path: str, **request: Any) -> httpx2.Response | None:
    """The answer, or None if it is not known what became of the request."""
    if request.get("json") is None:
        request.pop("json", None)
    try:
        response = await client.request(method, path, **request)
    except httpx2.TransportError:
        return None
    return None if response.status_code == 503 else response


async def _pairs(client: httpx2.AsyncClient, path: str, prefix: str, etags: dict[str, str]) -> dict[str, Any]:
    """The pairs with the prefix; their ETags go into ``etags``."""
    page = await get_json(client, f"{path}?prefix={prefix}&values=true")
    assert page["cursor"] is None
    etags |= {item["key"]: item["etag"] for item in page["items"]}
    return {item["key"]: item["value"] for item in page["items"]}


async def _sequence(client: httpx2.AsyncClient, key: str) -> tuple[list[Event], int]:
    """The events and the revision, having seen that the state is what the events make and the listing counts both."""
    path = f"/ns/{SHARED}/es"
    answer = await client.get(f"{path}/{key}/events")
    (listed,) = (await get_json(client, f"{path}?match={key}"))["items"] or [None]
    if answer.status_code == 404:
        assert listed is None
        return [], 0
    fields = ("timestamp", "item", "op", "value")
    events: list[Event] = [tuple(event[field] for field in fields) for event in answer.json()["events"]]
    current = await get_json(client, f"{path}/{key}/current")
    assert current["state"] == fold(events), "the state is not what the events make"
    told = (listed["events"], listed["items"], listed["revision"])
    assert told == (len(events), len(current["state"]), current["revision"]), (
        "a sequence's counts are not of its events"
    )
    if events:
        assert listed["last"] >= max(timestamp for timestamp, *_ in events)
    return events, current["revision"]
