"""Event sequences: every operation of the SDK on every backend, with the meaning that docs/sdk.md gives it."""

from __future__ import annotations

import decimal
import operator
import time

import pytest

import rstore
from rstore import StoreDecryptionError, StoreError, StoreIntegrityError, StoreRequestError

pytestmark = pytest.mark.anyio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def exactly(value):
    """A value with its type, so that True is not 1 and 2.0 is not 2."""
    if isinstance(value, dict):
        return {key: exactly(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [exactly(member) for member in value]
    return type(value), repr(value)


async def refused(call, code="unfoldable-event"):
    """The call raises StoreIntegrityError with this code."""
    with pytest.raises(StoreIntegrityError) as caught:
        await call
    assert caught.value.code in (code, None), caught.value.code


# --- operators ---------------------------------------------------------------------------------------------

OPERATIONS = [
    (operator.add, 2, 3),
    (operator.add, 0.1, 0.2),
    (operator.add, 2, 0.5),
    (operator.add, True, True),
    (operator.add, "a", "ü"),
    (operator.add, [1], [[2], None]),
    (operator.add, 2**63, 2**63),
    (operator.concat, "a", "b"),
    (operator.concat, [1], [2, 3]),
    (operator.concat, [], []),
    (operator.floordiv, 7, 2),
    (operator.floordiv, -7, 2),
    (operator.floordiv, 7.5, 2),
    (operator.floordiv, -0.5, 1),
    (operator.mod, 7, 3),
    (operator.mod, -7, 3),
    (operator.mod, 7, -3),
    (operator.mod, -7.5, 2),
    (operator.mod, "%d of %%", 3),
    (operator.mod, "%s", [1, 2]),
    (operator.mul, 6, 7),
    (operator.mul, 6, 0.5),
    (operator.mul, "ab", 3),
    (operator.mul, 3, "ab"),
    (operator.mul, [1, 2], 2),
    (operator.mul, "ab", -1),
    (operator.mul, 2**100, 2**100),
    (operator.pow, 2, 10),
    (operator.pow, 2, -1),
    (operator.pow, 2, 0.5),
    (operator.pow, 0, 0),
    (operator.pow, -2, 3),
    (operator.pow, 3, 500),
    (operator.sub, 5, 7),
    (operator.sub, 0.3, 0.1),
    (operator.sub, True, True),
    (operator.truediv, 7, 2),
    (operator.truediv, 6, 3),
    (operator.truediv, -1.0, 4),
]


@pytest.mark.parametrize(("op", "before", "value"), OPERATIONS, ids=lambda part: getattr(part, "__name__", repr(part)))
async def test_binary_operators_have_pythons_meaning(store, op, before, value):
    expected = {"item": op(before, value)}
    await store.apply("e", {"item": before})
    assert exactly(await store.apply("e", {"item": (op, value)})) == exactly(expected)
    assert exactly(await store.current("e")) == exactly(expected)
    assert [event[1:] for event in await store.events("e")] == [
        ("item", operator.setitem, before),
        ("item", op, value),
    ]


@pytest.mark.parametrize("op", [operator.neg, operator.not_])
@pytest.mark.parametrize("before", [5, -5, 0, 0.0, True, False, 2**70, 1.5])
async def test_unary_operators_have_pythons_meaning(store, op, before):
    await store.apply("e", {"item": before})
    assert exactly(await store.apply("e", {"item": (op,)})) == exactly({"item": op(before)})
    assert exactly(await store.apply("e", {"item": (op,)})) == exactly({"item": op(op(before))})
    assert [event[2:] for event in await store.events("e")] == [(operator.setitem, before), (op, None), (op, None)]


@pytest.mark.parametrize("before", [None, "", "x", [], [0], {}, {"a": 1}])
async def test_not_takes_anything(store, before):
    await store.apply("e", {"item": before})
    assert await store.apply("e", {"item": (operator.not_,)}) == {"item": not before}


async def test_a_unary_operator_may_come_with_none(store):
    await store.apply("e", {"a": 1, "b": 2})
    assert await store.apply("e", {"a": (operator.neg, None), "b": (operator.delitem, None)}) == {"a": -1}


async def test_setitem_and_delitem(store):
    assert await store.apply("e", {"a": 1, "b": [2]}) == {"a": 1, "b": [2]}
    assert await store.apply("e", {"a": (operator.setitem, 3)}) == {"a": 3, "b": [2]}
    assert await store.apply("e", {"a": (operator.delitem,)}) == {"b": [2]}
    assert await store.apply("e", {"a": 4}) == {"a": 4, "b": [2]}


async def test_none_is_a_value_of_an_item(store):
    assert await store.apply("e", {"a": None}) == {"a": None}
    assert await store.current("e") == {"a": None}
    assert await store.apply("e", {"a": (operator.setitem, None)}) == {"a": None}
    assert await store.apply("e", {"a": (operator.delitem,)}) == {}


@pytest.mark.requires("client")
async def test_a_tuple_that_begins_with_no_function_is_a_value(store):
    changes = {"pair": (1, 2), "name": ("add", 3), "one": (5,), "empty": ()}
    assert exactly(await store.apply("e", changes)) == exactly(changes)
    with pytest.raises(StoreRequestError, match="is one of these functions of the module operator"):
        await store.apply("e", {"function": (max, 3)})
    assert exactly(await store.current("e")) == exactly(changes)


UNFOLDABLE = [
    ("absent", (operator.add, 1)),
    ("absent", (operator.delitem,)),
    ("absent", (operator.neg,)),
    ("absent", (operator.not_,)),
    ("number", (operator.add, "text")),
    ("number", (operator.concat, 1)),
    ("number", (operator.truediv, 0)),
    ("number", (operator.floordiv, 0)),
    ("number", (operator.mod, 0)),
    ("number", (operator.add, None)),
    ("text", (operator.neg,)),
    ("text", (operator.sub, "t")),
    ("text", (operator.mod, "unused")),
    ("text", (operator.mul, 1.5)),
    ("mapping", (operator.add, {"a": 1})),
    ("none", (operator.add, 1)),
    ("zero", (operator.pow, -1)),
]


@pytest.mark.parametrize(("item", "change"), UNFOLDABLE, ids=lambda part: str(part))
async def test_what_cannot_be_folded_is_refused_and_changes_nothing(store, item, change):
    state = {"number": 5, "text": "text", "mapping": {"a": 1}, "none": None, "zero": 0}
    await store.apply("e", state)
    before = await store.events("e"), await store.current("e", withtimestamp=True)
    await refused(store.apply("e", {"number": 6, item: change, "new": 1}))
    assert (await store.events("e"), await store.current("e", withtimestamp=True)) == before
    assert await store.apply("e", {"after": 1}) == {**state, "after": 1}


@pytest.mark.parametrize("change", [(operator.add, 1), (operator.delitem,), (operator.neg,)])
async def test_a_refused_first_apply_leaves_no_sequence(store, change):
    await refused(store.apply("e", {"a": change}))
    assert await store.current("e") is None
    assert await store.events("e") is None
    assert await store.eventsources() == []


async def test_deleting_twice_is_refused(store):
    await store.apply("e", {"a": 1})
    await store.apply("e", {"a": (operator.delitem,)})
    await refused(store.apply("e", {"a": (operator.delitem,)}))
    assert await store.current("e") == {}


@pytest.mark.requires("plain")
@pytest.mark.parametrize(
    ("before", "change"),
    [
        (10, (operator.pow, 10**9)),
        (10**3900, (operator.pow, 3)),
        (7, (operator.pow, 123_456_789)),
        (-(2**60), (operator.pow, 2**60 + 1)),
        ("a", (operator.mul, 10**12)),
        (10**12, (operator.mul, "ab")),
        ([0], (operator.mul, 10**11)),
        ([[[]]], (operator.mul, 2**62)),
        (10**3900, (operator.mul, 10**3900)),
        ("%9999999999d", (operator.mod, 1)),
        ("%.999999999f", (operator.mod, 1.5)),
        ("%-99999999s" * 50, (operator.mod, 1)),
        ("x" * 7_000_000, (operator.concat, "y" * 7_000_000)),
        ("x" * 7_000_000, (operator.add, "y" * 7_000_000)),
        (1e200, (operator.mul, 1e200)),
        (-8, (operator.pow, 0.5)),
        (1e300, (operator.pow, 2)),
    ],
    ids=lambda part: str(part)[:40],
)
async def test_operators_cannot_be_made_to_eat_memory_or_time(store, deployment, before, change):
    await store.apply("e", {"a": before})
    start = deployment.cpu_seconds
    await refused(store.apply("e", {"a": change}))
    assert deployment.cpu_seconds - start < 2
    assert len(await store.events("e")) == 1


@pytest.mark.requires("client")
async def test_values_beyond_json_fold_on_the_client(store):
    state = await store.apply("e", {"set": {1, 2}, "money": decimal.Decimal("1.10"), "pair": (1, 2), "n": 5})
    assert state == {"set": {1, 2}, "money": decimal.Decimal("1.10"), "pair": (1, 2), "n": 5}
    state = await store.apply(
        "e",
        {
            "set": (operator.sub, {1}),
            "money": (operator.mul, 3),
            "pair": (operator.concat, (3,)),
            "n": (operator.add, decimal.Decimal("0.5")),
        },
    )
    expected = {"set": {2}, "money": decimal.Decimal("3.30"), "pair": (1, 2, 3), "n": decimal.Decimal("5.5")}
    assert exactly(state) == exactly(expected)
    assert exactly(await store.current("e")) == exactly(expected)
    with pytest.raises(StoreIntegrityError):
        await store.apply("e", {"pair": (operator.concat, "no tuple")})
    assert exactly(await store.current("e")) == exactly(expected)
    assert exactly(await store.apply("e", {"pair": 1, "set": (operator.delitem,)})) == exactly(
        {"money": decimal.Decimal("3.30"), "pair": 1, "n": decimal.Decimal("5.5")}
    )


@pytest.mark.requires("client")
async def test_a_result_is_not_a_stored_value_that_later_applies_change(store):
    given = [1]
    await store.apply("e", {"a": given})
    state = await store.apply("e", {"a": (operator.add, [2])})
    state["a"].append(3)
    assert given == [1]
    assert await store.current("e") == {"a": [1, 2]}


# --- apply -------------------------------------------------------------------------------------------------


async def test_apply_records_one_event_per_item_at_one_timestamp(store):
    before = int(time.time() * 1000)
    await store.apply("e", {"b": 1, "a": 2, "é": 3})
    after = int(time.time() * 1000)
    events = await store.events("e")
    assert [event[1:] for event in events] == [
        ("a", operator.setitem, 2),
        ("b", operator.setitem, 1),
        ("é", operator.setitem, 3),
    ]
    assert len({event[0] for event in events}) == 1
    assert before - 2 <= events[0][0] <= after + 2
    assert all(type(event) is tuple for event in events)


async def test_applies_within_one_millisecond_all_succeed(store):
    for number in range(30):
        await store.apply("e", {"n": number})
    timestamps = [event[0] for event in await store.events("e")]
    assert timestamps == sorted(set(timestamps))
    assert len(timestamps) == 30
    assert await store.current("e") == {"n": 29}


async def test_an_empty_apply_records_nothing(store):
    assert await store.apply("e", {}) is None
    assert await store.apply("e", {}, t=5) is None
    assert await store.current("e") is None
    assert await store.eventsources() == []
    await store.apply("e", {"a": 1}, t=5)
    assert await store.apply("e", {}) == {"a": 1}
    assert await store.apply("e", {}, t=5) == {"a": 1}
    assert await store.apply("e", {}, t=9) == {"a": 1}
    assert await store.events("e") == [(5, "a", operator.setitem, 1)]


@pytest.mark.parametrize("t", [INT64_MIN, -(2**53) - 1, -1, 0, 1, 2**53 + 1, INT64_MAX])
async def test_an_explicit_timestamp_is_exact(store, t):
    assert await store.apply("e", {"a": 1}, t=t) == {"a": 1}
    assert await store.events("e") == [(t, "a", operator.setitem, 1)]
    assert await store.current("e", withtimestamp=True) == (t, {"a": 1})
    assert await store.past("e", t, withtimestamp=True) == (t, {"a": 1})
    assert await store.events("e", t, t) == [(t, "a", operator.setitem, 1)]


@pytest.mark.parametrize("t", [2**63, -(2**63) - 1, 1.5, "5"])
async def test_an_impossible_timestamp_is_refused(store, t):
    with pytest.raises((StoreError, TypeError, ValueError)):
        await store.apply("e", {"a": 1}, t=t)
    assert await store.current("e") is None


async def test_a_timestamp_that_has_events_is_taken(store):
    await store.apply("e", {"a": 1}, t=5)
    await store.apply("e", {"a": 2}, t=9)
    for t in (5, 9):
        # Whether it could be applied there or not.
        for changes in ({"b": 1}, {"b": (operator.add, 1)}, {"a": (operator.sub, "x")}):
            await refused(store.apply("e", changes, t=t), "timestamp-taken")
    assert await store.current("e") == {"a": 2}
    assert len(await store.events("e")) == 2
    await store.apply("other", {"a": 1}, t=5)


async def test_without_t_an_apply_follows_the_last_one(store):
    future = int(time.time() * 1000) + 10_000_000
    await store.apply("e", {"a": 1}, t=future)
    await store.apply("e", {"a": (operator.add, 1)})
    await store.apply("e", {"a": (operator.add, 1)})
    assert [event[0] for event in await store.events("e")] == [future, future + 1, future + 2]
    assert await store.current("e", withtimestamp=True) == (future + 2, {"a": 3})


async def test_no_timestamp_follows_the_last_int64(store):
    await store.apply("e", {"a": 1}, t=INT64_MAX)
    with pytest.raises(StoreError) as caught:
        await store.apply("e", {"a": 2})
    assert caught.value.status != 500
    assert await store.current("e") == {"a": 1}


async def test_an_apply_in_the_past(store):
    await store.apply("e", {"a": 1}, t=1_000)
    await store.apply("e", {"a": (operator.add, 1)}, t=2_000)
    assert await store.apply("e", {"b": "early"}, t=500) == {"a": 2, "b": "early"}
    assert await store.apply("e", {"a": 10}, t=1_500) == {"a": 11, "b": "early"}
    assert await store.apply("e", {"a": (operator.mul, 3)}, t=1_250) == {"a": 11, "b": "early"}
    assert await store.past("e", 1_499) == {"a": 3, "b": "early"}
    assert await store.past("e", 1_000) == {"a": 1, "b": "early"}
    assert await store.past("e", 999) == {"b": "early"}
    assert await store.current("e", withtimestamp=True) == (2_000, {"a": 11, "b": "early"})
    assert [event[0] for event in await store.events("e")] == [500, 1_000, 1_250, 1_500, 2_000]


@pytest.mark.parametrize(
    ("t", "change"),
    [
        (500, (operator.add, 1)),
        (500, (operator.delitem,)),
        (1_500, (operator.delitem,)),
        (1_500, "text"),
        (1_500, None),
        (2_500, (operator.delitem,)),
    ],
    ids=str,
)
async def test_an_apply_in_the_past_that_breaks_what_follows_is_refused(store, t, change):
    await store.apply("e", {"a": 1}, t=1_000)
    await store.apply("e", {"a": (operator.add, 1)}, t=2_000)
    await store.apply("e", {"a": (operator.delitem,)}, t=3_000)
    before = await store.events("e")
    await refused(store.apply("e", {"a": change, "b": 1}, t=t))
    assert await store.events("e") == before
    assert await store.current("e", withtimestamp=True) == (3_000, {})


async def test_an_apply_in_the_past_that_a_later_setitem_hides(store):
    await store.apply("e", {"a": 1}, t=1_000)
    await store.apply("e", {"a": 2}, t=3_000)
    assert await store.apply("e", {"a": "text"}, t=2_000) == {"a": 2}
    assert await store.apply("e", {"a": (operator.delitem,)}, t=2_500) == {"a": 2}
    assert await store.past("e", 2_500) == {}
    assert await store.past("e", 2_000) == {"a": "text"}


@pytest.mark.requires("sealing", "wire", "plain")
async def test_a_client_without_the_key_does_not_break_a_sealed_sequence(driver, store, namespace):
    sealed = await driver.open(namespace, key=rstore.generate_key())
    await sealed.apply("e", {"a": 5, "b": 1}, t=10)
    await sealed.apply("e", {"a": (operator.mul, 2), "b": (operator.delitem,)}, t=20)
    before = await sealed.events("e")
    for change in (1, (operator.add, 1), (operator.neg,), (operator.delitem,)):
        for t in (None, 5, 15, 25):
            await refused(store.apply("e", {"a": change}, t=t), "sealing-mismatch")
    await refused(store.apply("e", {"c": 1, "d": 2}), "sealing-mismatch")
    # What the SDK would have to fold first, it cannot read.
    with pytest.raises(StoreDecryptionError):
        await store.apply("e", {"c": (1, 2)})
    raw = {"item": "c", "value": "AAAA", "encoding": "bytes"}
    answer = await driver.http.post(f"/ns/{namespace}/es/e/events", json={"events": [raw]})
    assert (answer.status_code, answer.json()["code"]) == (409, "sealing-mismatch")
    assert await sealed.events("e") == before
    assert await sealed.apply("e", {"a": (operator.add, 1)}) == {"a": 11}


@pytest.mark.requires("sealing", "wire", "plain")
async def test_a_client_with_a_key_does_not_break_a_plain_sequence(driver, store, namespace):
    sealed = await driver.open(namespace, key=rstore.generate_key())
    await store.apply("e", {"a": 5}, t=10)
    await store.apply("e", {"a": (operator.delitem,)}, t=20)
    before = await store.events("e")
    for t in (None, 5, 15, 25):
        with pytest.raises(StoreDecryptionError):
            await sealed.apply("e", {"a": 1}, t=t)
        event = {"item": "a", "value": "AAAA", "encoding": "sealed"}
        body = {"events": [event]} if t is None else {"events": [event], "timestamp": t}
        answer = await driver.http.post(f"/ns/{namespace}/es/e/events", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "sealing-mismatch")
    assert await store.events("e") == before
    await store.apply("e", {"a": (1, 2), "b": b"raw", "c": 1})
    await store.prune("e")
    assert await store.apply("e", {"b": (operator.delitem,)}) == {"a": (1, 2), "c": 1}


# --- current, past, events ---------------------------------------------------------------------------------


async def test_an_unknown_sequence(store):
    assert await store.current("unknown") is None
    assert await store.current("unknown", withtimestamp=True) is None
    assert await store.past("unknown", 5) is None
    assert await store.past("unknown", 5, withtimestamp=True) is None
    assert await store.events("unknown") is None
    assert await store.events("unknown", 1, 2, [operator.add]) is None
    await store.prune("unknown")
    assert await store.eventsources() == []


async def test_past(store):
    await store.apply("e", {"a": 1}, t=0)
    await store.apply("e", {"a": (operator.add, 1), "b": 1}, t=10)
    await store.apply("e", {"a": (operator.delitem,)}, t=20)
    assert await store.past("e", -1) is None
    assert await store.past("e", -1, withtimestamp=True) is None
    assert await store.past("e", 0) == {"a": 1}
    assert await store.past("e", 9, withtimestamp=True) == (0, {"a": 1})
    assert await store.past("e", 10, withtimestamp=True) == (10, {"a": 2, "b": 1})
    assert await store.past("e", 19, withtimestamp=True) == (10, {"a": 2, "b": 1})
    assert await store.past("e", 20, withtimestamp=True) == (20, {"b": 1})
    assert await store.past("e", INT64_MAX, withtimestamp=True) == (20, {"b": 1})
    assert await store.past("e", INT64_MIN) is None
    assert await store.current("e", withtimestamp=True) == (20, {"b": 1})


async def test_a_sequence_with_an_empty_state_is_known(store):
    await store.apply("e", {"a": 1}, t=1)
    await store.apply("e", {"a": (operator.delitem,)}, t=2)
    assert await store.current("e") == {}
    assert await store.current("e", withtimestamp=True) == (2, {})
    assert await store.past("e", 2) == {}
    assert await store.eventsources() == ["e"]


async def test_events(store):
    await store.apply("e", {"b": 1, "a": 1}, t=0)
    await store.apply("e", {"a": (operator.add, 5)}, t=10)
    await store.apply("e", {"b": (operator.neg,), "a": (operator.sub, 2)}, t=20)
    events = [
        (0, "a", operator.setitem, 1),
        (0, "b", operator.setitem, 1),
        (10, "a", operator.add, 5),
        (20, "a", operator.sub, 2),
        (20, "b", operator.neg, None),
    ]
    assert await store.events("e") == events
    assert await store.events("e", 0) == events
    assert await store.events("e", 1) == events[2:]
    assert await store.events("e", 10, 10) == events[2:3]
    assert await store.events("e", end=0) == events[:2]
    assert await store.events("e", start=0, end=19) == events[:3]
    assert await store.events("e", 11, 19) == []
    assert await store.events("e", ops=[operator.setitem]) == events[:2]
    assert await store.events("e", ops=(operator.neg, operator.add)) == [events[2], events[4]]
    assert await store.events("e", ops={operator.mul}) == []
    assert await store.events("e", ops=[]) == []
    assert await store.events("e", 10, ops=[operator.setitem, operator.sub]) == [events[3]]


async def test_a_long_history_with_a_small_state(store):
    await store.apply("e", {"n": 0, "other": "kept"})
    await store.in_sequence([("apply", "e", {"n": (operator.add, 1)}) for _ in range(150)])
    assert await store.current("e") == {"n": 150, "other": "kept"}
    assert len(await store.events("e")) == 152


async def test_many_items(store):
    state = {f"item-{number:04}": number for number in range(1_000)}
    assert await store.apply("e", state) == state
    assert await store.current("e") == state
    assert [event[1] for event in await store.events("e")] == list(state)


@pytest.mark.parametrize("item", ["", "a\0b", "\ud800", "x" * 513])
async def test_an_illegal_item_is_refused(store, item):
    with pytest.raises((StoreError, ValueError)):
        await store.apply("e", {"good": 1, item: 1})
    assert await store.current("e") is None


# --- prune -------------------------------------------------------------------------------------------------


async def test_prune_drops_what_the_state_no_longer_needs(store):
    await store.apply("e", {"a": 1, "b": 1, "c": 1}, t=1)
    await store.apply("e", {"a": (operator.add, 1), "c": (operator.delitem,)}, t=2)
    await store.apply("e", {"a": 5}, t=3)
    await store.apply("e", {"a": (operator.add, 1), "b": (operator.neg,)}, t=4)
    state = await store.current("e", withtimestamp=True)
    await store.prune("e")
    assert await store.current("e", withtimestamp=True) == state == (4, {"a": 6, "b": -1})
    assert await store.events("e") == [
        (1, "b", operator.setitem, 1),
        (3, "a", operator.setitem, 5),
        (4, "a", operator.add, 1),
        (4, "b", operator.neg, None),
    ]
    await store.prune("e")
    assert len(await store.events("e")) == 4
    assert await store.apply("e", {"a": (operator.add, 1), "c": 1}) == {"a": 7, "b": -1, "c": 1}


async def test_prune_never_cancels_pairs(store):
    await store.apply("e", {"a": 5, "b": 5}, t=1)
    for t in (2, 3):
        await store.apply("e", {"a": (operator.not_,), "b": (operator.neg,)}, t=t)
    await store.prune("e")
    assert exactly(await store.current("e")) == exactly({"a": True, "b": 5})
    assert len(await store.events("e")) == 6


async def test_prune_removes_a_sequence_with_an_empty_state(store):
    for key in ("empty", "full"):
        await store.apply(key, {"a": 1})
    await store.apply("empty", {"a": (operator.delitem,)})
    await store.prune("empty", "full", "unknown")
    assert await store.eventsources() == ["full"]
    assert await store.current("empty") is None
    assert await store.events("empty") is None
    assert await store.current("full") == {"a": 1}
    assert await store.apply("empty", {"b": 1}, t=1) == {"b": 1}


async def test_prune_without_remove_keeps_the_key(store):
    await store.apply("e", {"a": 1, "b": 2}, t=1)
    await store.apply("e", {"a": (operator.delitem,), "b": (operator.delitem,)}, t=2)
    await store.prune("e", remove=False)
    assert await store.current("e") == {}
    assert await store.eventsources() == ["e"]
    assert all(event[2] is not operator.setitem for event in await store.events("e"))
    assert await store.apply("e", {"a": 3}, t=3) == {"a": 3}
    await refused(store.apply("e", {"b": (operator.add, 1)}))


async def test_prune_keeps_the_clock_of_the_sequence(store):
    future = int(time.time() * 1000) + 10_000_000
    await store.apply("e", {"a": 1}, t=1)
    await store.apply("e", {"b": 1}, t=future)
    await store.apply("e", {"b": (operator.delitem,)}, t=future + 1)
    await store.prune("e")
    assert await store.current("e") == {"a": 1}
    await store.apply("e", {"a": (operator.add, 1)})
    assert max(event[0] for event in await store.events("e")) > 1
    assert await store.current("e") == {"a": 2}


# --- listing -----------------------------------------------------------------------------------------------


async def test_eventsources_lists_in_key_order(store):
    await store.set("pair", 1)
    await store.extend("series", (1, 1))
    for key in ("b", "a", "é", "Z"):
        await store.apply(key, {"item": 1})
    assert await store.eventsources() == ["Z", "a", "b", "é"]
    assert await store.eventsequences() == ["Z", "a", "b", "é"]


async def test_many_sequences_page_through(store):
    keys = [f"sequence-{number:04}" for number in range(1_050)]
    await store.in_parallel([("apply", key, {"item": 1}) for key in keys])
    assert await store.eventsources() == keys
