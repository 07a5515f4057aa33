"""Values replaced under a condition: stretches of a series by their digest, sealed values of events by theirs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import operator

import pytest

from rstore.core.encodings import Encoding, Value
from rstore.core.frames import encode
from rstore.core.operators import OPERATORS
from rstore.core.points import Points, digest
from rstore.sealing import EventContext, Sealer
from rstored.engine.model import Change, Reseal, Stretch
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

LOW, HIGH = -(2**63), 2**63 - 1


def cells(pairs):
    return Points.from_pairs(pairs, lambda text: Value(Encoding.JSON, text.encode()))


async def extend_if(driver, store, key, points, digests, start=None, end=None):
    """A conditional extend; True if it was done, False if the condition does not hold."""
    if hasattr(driver, "http"):
        quoted = ", ".join(f'"{one}"' for one in digests)
        bounds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
        answer = await driver.http.post(
            f"/ns/{store.namespace}/ts/{key}/range",
            params=bounds,
            content=encode(points) if len(points) else b"",
            headers={"If-Match": quoted, "Content-Type": "application/vnd.rstore.points"},
        )
        if answer.is_error:
            assert (answer.status_code, answer.json()["code"]) == (412, "precondition-failed"), answer.text
        return answer.is_success
    try:
        stretch = Stretch(start, end, tuple(digests))
        await driver.engine.ts.extend(store.namespace, key, points, unchanged=stretch)
    except Problem as problem:
        if problem.code != "precondition-failed":
            raise
        return False
    return True


@pytest.mark.requires("plain")
async def test_a_stretch_is_replaced_only_as_it_was_read(driver, store):
    await store.extend("s", *[(t, t * 0.5) for t in range(2000)])
    read = Points.from_pairs([(t, t * 0.5) for t in range(100, 900)])
    new = Points.from_pairs([(t, -1.0) for t in range(100, 900, 3)])
    assert not await extend_if(driver, store, "s", new, [digest(read[1:])], 100, 899)
    assert not await extend_if(driver, store, "s", new, [digest(read)], 100, 900)
    assert not await extend_if(driver, store, "s", new, [digest(Points.empty())], 100, 899)
    assert await store.range("s") == [(t, t * 0.5) for t in range(2000)]
    assert await extend_if(driver, store, "s", new, ["0" * 64, digest(read)], 100, 899)
    now = {t: t * 0.5 for t in range(2000)} | dict(new)
    assert await store.range("s") == sorted(now.items())
    # Its own points make it another.
    assert not await extend_if(driver, store, "s", new, [digest(read)], 100, 899)
    assert await extend_if(driver, store, "s", new, [digest(Points.from_pairs(sorted(now.items())))])


@pytest.mark.requires("plain")
async def test_a_stretch_may_be_empty_open_or_of_any_kind_of_values(driver, store):
    nothing = digest(Points.empty())
    for start, end in ((None, None), (5, 9), (9, 5), (LOW, HIGH)):
        assert await extend_if(driver, store, "new", Points.empty(), [nothing], start, end)
    assert await store.timeseries() == []
    assert await extend_if(driver, store, "new", cells([(7, '"a"')]), [nothing], 5, None)
    assert not await extend_if(driver, store, "new", cells([(8, '"a"')]), [nothing], 5, None)
    assert await extend_if(driver, store, "new", cells([(8, '"b"')]), [nothing], 8, HIGH)
    assert await extend_if(driver, store, "new", cells([(LOW, "null")]), [nothing], LOW, 6)
    assert await store.range("new") == [(LOW, None), (7, "a"), (8, "b")]
    # Numbers beside other values are kept as text, and compare the same.
    await store.extend("new", (9, 1.5), (10, 7), (11, 2**70))
    mixed = cells([(7, '"a"'), (8, '"b"'), (9, "1.5"), (10, "7"), (11, str(2**70))])
    assert await extend_if(driver, store, "new", cells([(10, '"c"')]), [digest(mixed)], 7, 11)
    for number in (1, -0.0, 1e300):
        await store.extend("numbers", (1, number))
        points = Points.from_pairs([(1, number)])
        assert await extend_if(driver, store, "numbers", points, [digest(points)])


@pytest.mark.requires("plain")
async def test_every_kind_of_change_is_noticed(driver, store):
    points = [(t, f"value {t}") for t in range(0, 6000, 10)]
    texts = [(t, f'"value {t}"') for t in range(0, 6000, 10)]
    for change in (
        lambda: store.extend("s", (3000, "another")),
        lambda: store.extend("s", (3001, "one more")),
        lambda: store.remove("s", start=3000, end=3000),
        lambda: store.extend("s", (5990, "value 599o")),
    ):
        await store.remove("s")
        await store.extend("s", *points)
        assert await extend_if(driver, store, "s", cells(texts[:1]), [digest(cells(texts))], 0, 5990)
        await change()
        assert not await extend_if(driver, store, "s", cells(texts[:1]), [digest(cells(texts))], 0, 5990)
        assert await extend_if(driver, store, "s", cells(texts[:1]), [digest(cells(texts[:300]))], 0, 2990)


@pytest.mark.requires("plain")
async def test_of_many_who_replace_one_stretch_one_wins(driver, store):
    await store.extend("s", *[(t, 0) for t in range(100)])
    read = digest(Points.from_pairs([(t, 0) for t in range(100)]))
    done = await asyncio.gather(
        *[extend_if(driver, store, "s", Points.from_pairs([(writer, 1)]), [read], 0, 99) for writer in range(12)]
    )
    assert sum(done) == 1
    assert await store.range("s") == [(t, int(t == done.index(True))) for t in range(100)]


# --- events ------------------------------------------------------------------------------------------------


def sha(data):
    return hashlib.sha256(data).hexdigest()


async def apply_sealed(driver, store, t, *changes):
    """Record events ``(item, op, sealed bytes)``."""
    if hasattr(driver, "http"):
        events = [
            {"item": item, "op": op, "value": base64.b64encode(data).decode(), "encoding": "sealed"}
            for item, op, data in changes
        ]
        answer = await driver.http.post(f"/ns/{store.namespace}/es/e/events", json={"events": events, "timestamp": t})
        assert answer.is_success, answer.text
        return
    parts = [Change(item, op, Value(Encoding.SEALED, data)) for item, op, data in changes]
    await driver.engine.es.apply(store.namespace, "e", parts, timestamp=t)


async def reseal(driver, store, *parts, key="e"):
    """Reseal ``(timestamp, item, op, old, new)``; the code of the problem, or None."""
    if hasattr(driver, "http"):
        events = [
            {"timestamp": t, "item": item, "op": op, "replaces": sha(old), "value": base64.b64encode(new).decode()}
            for t, item, op, old, new in parts
        ]
        answer = await driver.http.post(f"/ns/{store.namespace}/es/{key}/reseal", json={"events": events})
        if answer.is_success:
            assert answer.json() == {"resealed": len(parts)}
            return None
        return answer.json()["code"]
    reseals = [Reseal(t, item, op, sha(old), Value(Encoding.SEALED, new)) for t, item, op, old, new in parts]
    try:
        await driver.engine.es.reseal(store.namespace, key, reseals)
    except Problem as problem:
        return problem.code
    return None


async def state_of(driver, store, path="current"):
    """Revision, timestamp and the events of the state, as the service has them."""
    if hasattr(driver, "http"):
        answer = await driver.http.get(f"/ns/{store.namespace}/es/e/{path}")
        found = answer.json()
        return (
            found["revision"],
            found["timestamp"],
            sorted((e["timestamp"], e["item"], e["op"], base64.b64decode(e["value"])) for e in found["events"]),
        )
    name, _, t = path.partition("?t=")
    method = getattr(driver.engine.es, name)
    found = await (method(store.namespace, "e", int(t)) if t else method(store.namespace, "e"))
    return found.revision, found.timestamp, sorted((e[0], e[1], e[2], e[3].data) for e in found.events)


@pytest.mark.requires("plain")
async def test_sealed_values_are_replaced_and_nothing_else_changes(driver, store):
    await apply_sealed(driver, store, 1, ("a", "setitem", b"a1"), ("b", "setitem", b"b1"), ("c", "setitem", b"c1"))
    await apply_sealed(driver, store, 2, ("a", "add", b"a2"), ("c", "delitem", b"c2"))
    await apply_sealed(driver, store, 3, ("a", "neg", b"a3"))
    await apply_sealed(driver, store, 4, ("b", "setitem", b"b4"))
    everything = {(1, "a", "setitem"): b"a1", (1, "b", "setitem"): b"b1", (1, "c", "setitem"): b"c1"}
    everything |= {
        (2, "a", "add"): b"a2",
        (2, "c", "delitem"): b"c2",
        (3, "a", "neg"): b"a3",
        (4, "b", "setitem"): b"b4",
    }
    assert (await state_of(driver, store))[:2] == (4, 4)
    # Longer and shorter values, in the state and in the past of it, a copy in the item's row among them.
    for round_ in range(3):
        new = {place: old[:1] + bytes([round_]) * (5 - 2 * round_) for place, old in everything.items()}
        assert await reseal(driver, store, *[(*place, everything[place], new[place]) for place in new]) is None
        everything = new
        current = [(*place, everything[place]) for place in [(1, "a", "setitem"), (2, "a", "add"), (3, "a", "neg")]]
        current = sorted([*current, (4, "b", "setitem", everything[4, "b", "setitem"])])
        assert await state_of(driver, store) == (4, 4, current)
        past = [(1, item, "setitem", everything[1, item, "setitem"]) for item in "abc"]
        assert await state_of(driver, store, "past?t=1") == (4, 1, past)
    # What follows goes on from there.
    await apply_sealed(driver, store, 5, ("b", "mul", b"b5"))
    assert (await state_of(driver, store))[0] == 5
    assert (await state_of(driver, store))[2][-2:] == [
        (4, "b", "setitem", everything[4, "b", "setitem"]),
        (5, "b", "mul", b"b5"),
    ]


@pytest.mark.requires("plain")
async def test_all_events_are_resealed_or_none(driver, store):
    await store.apply("plain", {"a": 5, "other": 1}, 1)
    await store.apply("plain", {"a": (operator.neg,)}, 2)
    for bad in ((1, "a", "setitem", b"5", b"B1"), (2, "a", "neg", b"", b"B1"), (2, "a", "neg", b"null", b"B1")):
        assert await reseal(driver, store, bad, key="plain") == "precondition-failed", bad
    await apply_sealed(driver, store, 1, ("a", "setitem", b"a1"), ("b", "setitem", b"b1"))
    before = await state_of(driver, store)
    good = (1, "a", "setitem", b"a1", b"A1")
    for bad in (
        (1, "b", "setitem", b"b2", b"B1"),
        (1, "b", "add", b"b1", b"B1"),
        (2, "b", "setitem", b"b1", b"B1"),
        (1, "c", "setitem", b"b1", b"B1"),
    ):
        assert await reseal(driver, store, good, bad) == "precondition-failed", bad
        assert await reseal(driver, store, bad, good) == "precondition-failed", bad
    assert await reseal(driver, store, good, good) == "invalid-body"
    assert await reseal(driver, store, good, key="absent") == "sequence-not-found"
    assert await reseal(driver, store) is None
    assert await state_of(driver, store) == before
    assert await reseal(driver, store, good) is None
    assert await reseal(driver, store, good, (1, "b", "setitem", b"b1", b"B1")) is None, "a repeat does no harm"
    assert await reseal(driver, store, (1, "a", "setitem", b"a1", b"A2")) == "precondition-failed"
    assert (await state_of(driver, store))[2] == [(1, "a", "setitem", b"A1"), (1, "b", "setitem", b"B1")]


@pytest.mark.requires("sealing", "sealed")
async def test_readers_and_writers_are_not_disturbed_by_reseals(driver, store):
    """The SDK folds the same state, page by page, while the values under it are replaced."""
    await store.apply("e", {"sum": 0, "text": ""})
    for number in range(30):
        await store.apply("e", {"sum": (operator.add, number), "text": (operator.concat, str(number % 10))})
    told = await store.current("e")
    events = await store.events("e")
    sealer = Sealer(store.key)
    done = False

    async def reseal_all():
        nonlocal done
        for _ in range(4):
            answer = await driver.http.get(f"/ns/{store.namespace}/es/e/events")
            parts = []
            for event in answer.json()["events"]:
                t, item, op, old = event["timestamp"], event["item"], event["op"], base64.b64decode(event["value"])
                place = EventContext(store.namespace, "e", t, item, op)
                new = sealer.seal(sealer.open(Value(Encoding.SEALED, old), place), place).data
                parts.append((t, item, op, old, new))
            for start in range(0, len(parts), 7):
                assert await reseal(driver, store, *parts[start : start + 7]) is None
        done = True

    async def read():
        while not done:
            assert (await store.current("e"))["sum"] >= told["sum"]
            found = await store.events("e")
            assert found[: len(events)] == events
            assert await store.past("e", events[20][0]) is not None

    async def write():
        number = 0
        while not done:
            assert (await store.apply("e", {"more": number}))["more"] == number
            number += 1

    await asyncio.gather(reseal_all(), read(), write())
    assert {item: (await store.current("e"))[item] for item in told} == told
    assert (await store.events("e"))[: len(events)] == events
    assert {op for _, _, op, _ in events} <= {*OPERATORS.values()}
