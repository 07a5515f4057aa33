"""Event sequences on a real SQLite file: against a plain list of events, and point by point."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import operator
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rstore.core.encodings import Encoding, Value
from rstore.core.operators import OPERATORS, UNARY
from rstored.backends.abc import HeadRead, Kind, Place, RowScan
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.es import EventSequences
from rstored.engine.es import rows as es_rows
from rstored.engine.model import Change, NamespacePolicy, PruneResult, Reseal, SequenceInfo, State, StoredEvent
from rstored.engine.namespaces import Namespaces
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def plain(value):
    return Value(Encoding.JSON, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def sealed(value):
    """What the service cannot read, in a sequence of its own kind."""
    return Value(Encoding.SEALED, b"\x01" + json.dumps(value).encode())


def opaque(value):
    """What the service cannot read either, and which may stand beside plain JSON."""
    return Value(Encoding.PICKLE, b"\x01" + json.dumps(value).encode())


def put(item, value):
    return Change(item, "setitem", value if isinstance(value, Value) else plain(value))


def do(item, op, *value):
    return Change(item, op, None if not value else value[0] if isinstance(value[0], Value) else plain(value[0]))


def folded(state):
    return {item: json.loads(value.data) for item, value in state.items.items()}


def brief(events):
    return [(event.timestamp, event.item, event.op) for event in events]


class Counting(Storage):
    """Counts the rows that the engine reads."""

    rows = 0

    def count(self, results):
        self.rows += sum(len(result.items) for result in results if hasattr(result, "items"))
        return results

    async def read(self, *reads):
        return self.count(await super().read(*reads))

    async def update(self, places, plan):
        def counted(heads):
            generator = plan(heads)
            results = None
            while True:
                try:
                    query = generator.send(results)
                except StopIteration as stopped:
                    return stopped.value
                results = self.count((yield query))

        return await super().update(places, counted)


class Clock:
    def __init__(self, now=1_000):
        self.now = now

    def __call__(self):
        return self.now


class Sequences(EventSequences):
    """The engine's sequences in namespace ``n``, with what a test needs beside them."""

    def __init__(self, storage, limits, clock):
        super().__init__(storage, limits, clock)
        self.storage = storage
        self.clock = clock

    async def all(self, key="k", **filters):
        pages = await self.events("n", key, **filters)
        return None if pages is None else [event async for page in pages for event in page]

    async def put(self, *changes, key="k", **options):
        return await self.apply("n", key, changes, **options)

    async def refused(self, code, *changes, key="k", **options):
        """The apply is refused with this code and changes nothing; returns the problem."""
        before = await self.all(key), await self.current("n", key)
        with pytest.raises(Problem) as caught:
            await self.apply("n", key, changes, **options)
        assert caught.value.code == code
        assert (await self.all(key), await self.current("n", key)) == before
        return caught.value

    def under(self, **limits):
        """The same sequences under other limits."""
        return Sequences(self.storage, Limits(**limits), self.clock)


@pytest.fixture
async def es(tmp_path):
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield Sequences(Counting(backend), Limits(), Clock())
    await backend.close()


# --- apply -------------------------------------------------------------------------------------------------


async def test_an_apply_answers_the_whole_new_state(es):
    await es.put(put("a", 1), put("b", opaque("x")))
    state = await es.put(do("a", "add", 2), do("b", "add", opaque("y")), put("c", [1]), timestamp=2_000)
    assert state == State(
        2_000,
        2,
        {"a": plain(3), "c": plain([1])},
        [StoredEvent(1_000, "b", "setitem", opaque("x")), StoredEvent(2_000, "b", "add", opaque("y"))],
    )
    assert await es.current("n", "k") == state


async def test_the_next_timestamp(es):
    assert (await es.put(put("a", 1))).timestamp == 1_000
    assert (await es.put(put("a", 2))).timestamp == 1_001
    es.clock.now = 1_500
    assert (await es.put(put("a", 3))).timestamp == 1_500
    assert (await es.put(put("a", 3), timestamp=INT64_MAX)).timestamp == INT64_MAX
    await es.refused("timestamp-taken", put("a", 4))
    await es.refused("timestamp-taken", put("a", 4), timestamp=INT64_MAX)
    assert (await es.put(put("z", 0), timestamp=INT64_MIN)).timestamp == INT64_MAX
    assert (await es.past("n", "k", INT64_MIN)).timestamp == INT64_MIN
    await es.refused("unfoldable-event", do("y", "neg"), timestamp=INT64_MIN + 1)
    assert (await es.all())[0] == StoredEvent(INT64_MIN, "z", "setitem", plain(0))


async def test_no_changes_record_nothing(es):
    assert await es.put() is None
    assert await es.put(write_id="x", revision=0) is None
    await es.refused("revision-conflict", revision=1)
    assert (await es.list("n")).items == []
    first = await es.put(put("a", 1))
    assert await es.put(timestamp=5, revision=1) == first
    await es.refused("revision-conflict", revision=0)
    assert await es.all() == [StoredEvent(1_000, "a", "setitem", plain(1))]


async def test_the_text_of_a_value_is_kept(es):
    text = Value(Encoding.JSON, b'{"b": 1.50,  "a": [ ] }')
    state = await es.put(put("a", text))
    assert state.items["a"] == text


@pytest.mark.parametrize(
    ("changes", "options", "code", "pointer"),
    [
        ([put("", 1)], {}, "invalid-body", "/events/0/item"),
        ([put("b", 1), put("x\0y", 1)], {}, "invalid-body", "/events/1/item"),
        ([put("x" * 513, 1)], {}, "invalid-body", "/events/0/item"),
        ([put("\ud800", 1)], {}, "invalid-body", "/events/0/item"),
        ([put("b", 1), do("b", "add", 1)], {}, "invalid-body", "/events/1/item"),
        ([do("a", "xor", 1)], {}, "invalid-body", "/events/0/op"),
        ([do("a", "neg", 1)], {}, "invalid-body", "/events/0/value"),
        ([do("a", "delitem", 1)], {}, "invalid-body", "/events/0/value"),
        ([do("a", "neg", None)], {}, "invalid-body", "/events/0/value"),
        ([do("a", "not_", Value(Encoding.BYTES, b""))], {}, "invalid-body", "/events/0/value"),
        ([do("a", "delitem", Value(Encoding.PICKLE, b"N."))], {}, "invalid-body", "/events/0/value"),
        ([do("a", "add")], {}, "invalid-body", "/events/0/value"),
        ([Change("a", "setitem", None)], {}, "invalid-body", "/events/0/value"),
        ([put("a", Value(Encoding.JSON, b"NaN"))], {}, "invalid-value", "/events/0/value"),
        ([put("a", Value(Encoding.JSON, b"[" * 200 + b"]" * 200))], {}, "nesting-too-deep", "/events/0/value"),
        ([put("a", 1)], {"timestamp": 2**63}, "invalid-body", "/timestamp"),
        ([put("b", 1), do("a", "add", "x")], {}, "unfoldable-event", "/events/1"),
        ([do("b", "add", 1)], {}, "unfoldable-event", "/events/0"),
        ([do("b", "delitem")], {}, "unfoldable-event", "/events/0"),
        ([do("b", "neg")], {}, "unfoldable-event", "/events/0"),
        ([do("b", "add", opaque(1))], {}, "unfoldable-event", "/events/0"),
        ([do("a", "truediv", 0)], {}, "unfoldable-event", "/events/0"),
        ([do("a", "pow", 10**9)], {"timestamp": 7_000}, "unfoldable-event", "/events/0"),
    ],
)
async def test_what_is_refused_stores_nothing(es, changes, options, code, pointer):
    await es.put(put("a", 10))
    problem = await es.refused(code, *changes, **options)
    assert problem.members["pointer"] == pointer
    if code == "unfoldable-event":
        item = problem.members["item"]
        assert item == changes[int(pointer[-1])].item
        assert problem.detail.startswith(f"the event of item {item!r} cannot be applied: ")
    assert (await es.list("n")).items == [SequenceInfo("k", 1, 1, 1_000, 1)]


async def test_a_refused_first_apply_creates_nothing(es):
    await es.refused("unfoldable-event", put("a", 1), do("b", "neg"))
    assert (await es.list("n")).items == []


async def test_limits(es):
    many = es.under(events_per_call_max=2)
    await many.put(put("a", 1), put("b", 1))
    assert (await many.refused("batch-too-large", put("a", 1), put("b", 1), put("c", 1))).members["limit"] == 2
    short = es.under(state_bytes_max=10)
    await short.put(put("a", "1234567"))
    await short.put(do("a", "add", "8"))
    await short.refused("unfoldable-event", do("a", "add", "9"))
    await short.refused("value-too-large", put("a", "123456789"))
    await short.put(put("a", opaque("123456789")))
    await es.under(value_bytes_max=5).refused("value-too-large", put("c", "1234"))


async def test_the_state_of_a_sequence_is_limited(es):
    small = es.under(sequence_bytes_max=1_000)
    await small.put(put("a", "x" * 400), put("b", opaque("y" * 400)))
    for _ in range(2):
        await small.put(do("b", "add", opaque("")))
    problem = await small.refused("value-too-large", do("b", "add", opaque("y" * 100)))
    assert problem.members["limit"] == 1_000
    await small.put(do("a", "delitem"), do("b", "add", opaque("y" * 100)))
    await small.put(put("b", 1))
    for _ in range(50):
        await small.put(do("b", "add", 1))
    assert folded(await small.current("n", "k")) == {"b": 51}


async def test_how_much_an_apply_in_the_past_folds_anew_is_limited(es):
    small = es.under(refolded_events_max=6)
    await small.put(put("a", 1), timestamp=10)
    for t in range(20, 70, 10):
        await small.put(do("a", "add", 1), timestamp=t)
    # At 15 there are one event before and five after it, at 35 and at 65 seven in all.
    assert folded(await small.put(do("a", "mul", 2), timestamp=15)) == {"a": 7}
    for change, t in ((do("a", "mul", 2), 35), (do("a", "neg"), 55)):
        await small.refused("unfoldable-event", change, timestamp=t)
    assert (await small.current("n", "k")).revision == 7
    # What begins a chain folds nothing before it, and what a chain begins after folds nothing of that.
    assert folded(await small.put(put("a", 2), timestamp=55)) == {"a": 3}
    assert folded(await small.put(put("a", 9), timestamp=5)) == {"a": 3}
    assert folded(await small.put(do("a", "add", 1))) == {"a": 4}


async def test_long_values_are_folded_anew_less_often(es):
    await es.put(put("a", "x" * 10_000), timestamp=10)
    await es.put(do("a", "add", "y"), timestamp=20)
    await es.under(refolded_events_max=3).refused("unfoldable-event", do("a", "add", "z"), timestamp=15)
    assert len(folded(await es.under(refolded_events_max=4).put(do("a", "add", "z"), timestamp=15))["a"]) == 10_002


async def test_revisions(es):
    problem = await es.refused("revision-conflict", put("a", 1), revision=1)
    assert problem.members == {"revision": 0, "timestamp": 0}
    assert (await es.put(put("a", 1), revision=0)).revision == 1
    problem = await es.refused("revision-conflict", put("a", 2), revision=0)
    assert problem.members == {"revision": 1, "timestamp": 1_000}
    assert (await es.put(put("a", 2), revision=1, timestamp=500)).revision == 2
    await es.refused("revision-conflict", revision=1)
    await es.prune("n", "k")
    assert (await es.current("n", "k")).revision == 2
    await es.delete("n", "k")
    assert (await es.put(put("a", 3), revision=0)).revision == 1


async def test_a_repeated_apply_is_answered_as_it_was(es):
    async def one():
        return await es.put(put("a", 1), write_id="one", revision=0)

    async def two():
        return await es.put(do("a", "add", 1), write_id="two")

    first, second = await one(), await two()
    await es.put(do("a", "add", 5))
    assert (await one(), await two()) == (first, second)
    assert len(await es.all()) == 3
    past = await es.put(put("b", 1), timestamp=1, write_id="past")
    assert past.timestamp == 1_002
    assert await es.put(put("b", 1), timestamp=1, write_id="past") == past
    assert (await es.put(put("a", 1), write_id="one", revision=0, key="other")).timestamp == 1_000


async def test_no_repeat_of_an_apply_that_was_done_is_called_refused(es):
    await es.put(put("a", opaque("x" * 100)), timestamp=10, write_id="one")
    await es.put(put("a", 1), timestamp=20)
    with pytest.raises(Problem) as caught:
        await es.under(sequence_bytes_max=80).put(put("a", opaque("x" * 100)), timestamp=10, write_id="one")
    # Its state is too large now. The code for this leaves the outcome open; a code of a refusal would not.
    assert caught.value.code == "backend-unavailable"
    assert "was carried out" in caught.value.detail
    assert len(await es.all()) == 2


async def test_a_refused_apply_stays_refused_under_its_id(es):
    await es.put(put("a", 1))
    await es.refused("unfoldable-event", do("b", "neg"), write_id="x")
    await es.put(put("b", 1))
    problem = await es.refused("unfoldable-event", do("b", "neg"), write_id="x")
    assert problem.members == {"item": "b", "pointer": "/events/0"}
    await es.put(do("b", "neg"), write_id="y")


async def test_a_sealed_only_namespace(es):
    await Namespaces(es.storage, Limits(), es.clock).create("n", NamespacePolicy(sealed_only=True))
    await es.refused("sealed-only", put("a", sealed(1)), put("b", 1))
    await es.put(put("a", sealed(1)))
    for op in ("neg", "not_", "delitem"):
        await es.refused("sealed-only", do("a", op), revision=1)
        await es.refused("sealed-only", do("a", op), put("b", sealed(1)), timestamp=5, revision=1)
    state = await es.put(do("a", "neg", sealed(None)))
    assert state.events[1:] == [StoredEvent(1_001, "a", "neg", sealed(None))]
    assert (await es.put(do("a", "delitem", sealed(None)))).events == []


# --- chains of mixed encodings -----------------------------------------------------------------------------


async def test_a_chain_is_folded_here_only_if_all_of_it_is_json(es):
    await es.put(put("a", 1))
    await es.put(do("a", "add", 1))
    state = await es.put(do("a", "add", opaque(1)))
    assert state.items == {}
    assert brief(state.events) == [(1_000, "a", "setitem"), (1_001, "a", "add"), (1_002, "a", "add")]
    await es.refused("revision-conflict", do("a", "add", "what only the client can check"))
    state = await es.put(do("a", "add", "what only the client can check"), revision=3)
    assert len(state.events) == 4
    assert state == await es.current("n", "k")
    state = await es.put(put("a", 5))
    assert (folded(state), state.events) == ({"a": 5}, [])
    assert folded(await es.past("n", "k", 1_001)) == {"a": 2}
    assert len((await es.past("n", "k", 1_003)).events) == 4
    state = await es.put(put("a", Value(Encoding.PICKLE, b"p")))
    assert state.events == [StoredEvent(1_005, "a", "setitem", Value(Encoding.PICKLE, b"p"))]
    assert (await es.put(do("a", "not_"), revision=6)).events[1:] == [StoredEvent(1_006, "a", "not_", None)]


async def test_a_sealed_value_of_a_unary_operator_is_kept_and_not_looked_at(es):
    await es.put(put("a", sealed(1)), timestamp=1)
    # What proves an event is for the client to read, so it is for the client to fold as well.
    state = await es.put(do("a", "neg", sealed(1)), timestamp=3)
    everything = [
        StoredEvent(1, "a", "setitem", sealed(1)),
        StoredEvent(2, "a", "not_", sealed("two")),
        StoredEvent(3, "a", "neg", sealed(1)),
        StoredEvent(4, "a", "delitem", sealed("")),
    ]
    assert (state.items, state.events) == ({}, [everything[0], everything[2]])
    assert (await es.put(do("a", "not_", sealed("two")), timestamp=2)).events == everything[:3]
    assert (await es.put(do("a", "delitem", sealed("")), timestamp=4)).events == []
    assert await es.all() == everything
    assert (await es.past("n", "k", 3)).events == everything[:3]
    await es.refused("unfoldable-event", do("a", "neg", sealed(1)))
    await es.refused("unfoldable-event", do("a", "delitem", sealed(1)), timestamp=0)


@pytest.mark.parametrize("timestamp", [None, 1_005])
@pytest.mark.parametrize("change", [do("a", "add", 1), do("a", "neg"), do("a", "not_")])
async def test_what_only_a_client_can_check_needs_a_revision(es, timestamp, change):
    await es.put(put("a", opaque(1)), put("b", 1))
    await es.put(do("a", "add", opaque(1)), timestamp=1_010)
    problem = await es.refused("revision-conflict", put("c", 1), change, timestamp=timestamp)
    assert problem.members == {"revision": 2, "timestamp": 1_010, "item": "a", "pointer": "/events/1"}
    assert len((await es.put(change, timestamp=timestamp, revision=2)).events) == 3
    await es.put(do("a", "mul", opaque(2)), do("b", "add", 1))
    await es.put(do("a", "delitem"))


async def test_a_plain_event_before_sealed_ones_needs_a_revision(es):
    await es.put(put("a", 1), timestamp=10)
    await es.put(do("a", "add", opaque(1)), timestamp=30)
    await es.refused("revision-conflict", do("a", "add", 1), timestamp=20)
    await es.refused("revision-conflict", put("a", 1), timestamp=20)
    assert len((await es.put(put("a", 1), timestamp=20, revision=2)).events) == 2


async def test_an_event_in_the_past_can_seal_a_chain(es):
    await es.put(put("a", 1), timestamp=10)
    await es.put(do("a", "add", 1), timestamp=20)
    state = await es.put(do("a", "mul", opaque(3)), timestamp=15)
    assert brief(state.events) == [(10, "a", "setitem"), (15, "a", "mul"), (20, "a", "add")]
    assert (state.items, state.timestamp) == ({}, 20)
    assert state == await es.current("n", "k")
    state = await es.put(put("a", 7), timestamp=17)
    assert (folded(state), state.events) == ({"a": 8}, [])


async def test_a_refold_stops_at_what_hides_it(es):
    for t, change in [(10, put("a", 1)), (20, do("a", "add", 1)), (30, do("a", "delitem")), (40, put("a", "text"))]:
        await es.put(change, timestamp=t)
    await es.put(do("a", "mul", 5), timestamp=15)
    assert folded(await es.past("n", "k", 29)) == {"a": 6}
    problem = await es.refused("unfoldable-event", do("a", "delitem"), timestamp=16)
    assert "later event" in problem.detail
    await es.refused("unfoldable-event", put("a", "text"), timestamp=16)
    await es.refused("unfoldable-event", do("a", "add", 1), timestamp=35)
    await es.refused("unfoldable-event", do("a", "add", 1), timestamp=5)
    await es.refused("timestamp-taken", do("b", "add", 1), timestamp=30)
    await es.put(put("a", 3), timestamp=35)
    await es.put(do("a", "delitem"), timestamp=37)
    assert folded(await es.put(do("a", "add", "!"), timestamp=45)) == {"a": "text!"}
    assert (await es.list("n")).items == [SequenceInfo("k", 8, 8, 45, 1)]


async def test_what_lies_before_a_chain_does_not_touch_it(es):
    await es.put(put("a", 1), timestamp=9)
    await es.put(put("a", opaque(1)), timestamp=11)
    await es.put(*(put(f"x{number}", 1) for number in range(20)), timestamp=12)
    for t in range(20, 40):
        await es.put(do("a", "add", opaque(1)), timestamp=t)
    current = await es.current("n", "k")
    state = await es.put(do("a", "add", 1), timestamp=10)
    assert state.events == current.events
    assert folded(await es.past("n", "k", 10)) == {"a": 2}
    state = await es.put(put("a", opaque(0)), timestamp=5)
    assert state.events == current.events == (await es.current("n", "k")).events


async def test_a_past_that_is_pruned_while_it_is_read(es, monkeypatch):
    """Every page of the read belongs to one history: a state that never was is never answered."""
    monkeypatch.setattr(es_rows, "PAGE_EVENTS_MAX", 2)
    await es.put(put("a", 1), put("b", 1), timestamp=1)
    await es.put(do("a", "add", 1), do("b", "add", 1), timestamp=2)
    await es.put(put("a", 9), timestamp=3)
    await es.put(put("z", 0), timestamp=4)
    read = es.storage.read_in_turn

    async def read_and_prune(*reads):
        results = await read(*reads)
        if isinstance(reads[-1], RowScan) and reads[-1].lane == 0:
            monkeypatch.undo()
            await es.prune("n", "k")
        return results

    monkeypatch.setattr(es.storage, "read_in_turn", read_and_prune)
    state = await es.past("n", "k", 2)
    assert folded(state) == {"b": 2}


async def test_what_an_older_limit_allowed_goes_to_the_client(es):
    await es.put(put("a", "x" * 10))
    await es.put(do("a", "mul", 10))
    await es.put(put("a", 1))
    tight = es.under(state_bytes_max=50)
    assert brief((await tight.past("n", "k", 1_001)).events) == [(1_000, "a", "setitem"), (1_001, "a", "mul")]


# --- either all sealed, or none ----------------------------------------------------------------------------

UNSEALED = [put("b", 1), put("b", opaque(1)), put("b", Value(Encoding.BYTES, b"")), do("a", "neg"), do("a", "delitem")]
SEALED = [put("b", sealed(1)), do("a", "neg", sealed(None)), do("a", "delitem", sealed(None))]


@pytest.mark.parametrize("options", [{}, {"revision": 2}, {"timestamp": 5}, {"timestamp": 15}, {"timestamp": 25}])
@pytest.mark.parametrize(
    ("fitting", "others"),
    [
        ([put("a", sealed(1)), do("a", "neg", sealed(0)), *SEALED], UNSEALED),
        ([put("a", 1), do("a", "neg"), *UNSEALED], SEALED),
    ],
    ids=["sealed", "unsealed"],
)
async def test_a_sequence_takes_no_event_that_its_readers_could_not_read(es, fitting, others, options):
    begin, go_on, *more = fitting
    await es.put(begin, timestamp=10)
    await es.put(go_on, timestamp=20)
    for number, other in enumerate(others):
        assert (await es.refused("sealing-mismatch", other, **options)).members == {"pointer": "/events/0"}
        mixed = await es.refused("sealing-mismatch", fitting[0]._replace(item="c"), other, **options)
        assert mixed.members == {"pointer": "/events/1"}
        # Nor does any other sequence take both at once.
        await es.refused("sealing-mismatch", fitting[0]._replace(item="c"), other, key=f"new {number}")
    for change in more:
        await es.put(change, revision=(await es.current("n", "k")).revision)
        await es.put(put("a", fitting[0].value))


async def test_what_a_sequence_takes_is_known_again_when_its_events_are_gone(es):
    await es.put(put("a", sealed(1)))
    await es.put(do("a", "delitem", sealed(None)))
    await es.refused("sealing-mismatch", put("a", 1))
    await es.prune("n", "k", remove=False)
    await es.put(put("a", 1))
    await es.refused("sealing-mismatch", put("a", sealed(1)))
    await es.delete("n", "k")
    await es.put(put("a", sealed(1)))


# --- reading -----------------------------------------------------------------------------------------------


async def test_an_unknown_sequence(es):
    assert await es.current("n", "k") is None
    assert await es.past("n", "k", 5) is None
    assert await es.all() is None
    assert await es.prune("n", "k") == PruneResult(0, False)
    assert await es.delete("n", "k") == 0
    await es.put(put("a", 1), key="l")
    assert await es.all() is None


async def test_events_filters(es):
    await es.put(put("b", 1), put("a", 1), put("ab", 1), timestamp=0)
    await es.put(do("a", "add", 5), timestamp=10)
    await es.put(do("b", "neg"), do("a", "sub", 2), timestamp=20)
    everything = await es.all()
    assert brief(everything) == [
        (0, "a", "setitem"),
        (0, "ab", "setitem"),
        (0, "b", "setitem"),
        (10, "a", "add"),
        (20, "a", "sub"),
        (20, "b", "neg"),
    ]
    assert await es.all(start=0, end=20) == everything
    assert await es.all(start=1, end=10) == everything[3:4]
    assert await es.all(start=11, end=19) == []
    assert await es.all(start=20, end=0) == []
    assert await es.all(item="a") == [everything[0], everything[3], everything[4]]
    assert await es.all(item="a", start=10, ops={"add", "neg"}) == [everything[3]]
    assert await es.all(item="unknown") == []
    assert await es.all(ops={"setitem"}, n=2) == everything[:2]
    assert await es.all(n=0) == []
    assert await es.all(ops=set()) == []


async def test_a_history_of_many_pages(es):
    items = [f"item-{number:04}" for number in range(900)]
    await es.put(*(put(item, 0) for item in items))
    for _ in range(3):
        await es.put(*(do(item, "add", 1) for item in items))
    await es.put(*(put(item, opaque(0)) for item in items))
    await es.put(*(do(item, "neg") for item in items), revision=5)
    everything = await es.all()
    assert brief(everything) == sorted(brief(everything), key=lambda event: event[:2])
    assert len(everything) == 5_400
    assert len(await es.all(ops={"add"})) == 2_700
    assert len(await es.all(n=2_345)) == 2_345
    assert folded(await es.past("n", "k", 1_003)) == dict.fromkeys(items, 3)
    assert (await es.past("n", "k", 1_004)).events == everything[3_600:4_500]
    current = await es.current("n", "k")
    assert current.events == everything[3_600:]
    assert await es.prune("n", "k") == PruneResult(3_600, False)
    assert await es.current("n", "k") == current
    assert await es.all() == everything[3_600:]
    assert await es.past("n", "k", 1_003) is None


async def test_the_cost_does_not_grow_with_the_history(es):
    async def cost(awaitable):
        es.storage.rows = 0
        await awaitable
        return es.storage.rows

    await es.put(put("a", 0), put("b", opaque(0)), timestamp=1)
    costs = []
    for _ in range(2):
        costs.append([await cost(es.put(do("a", "add", 1))), await cost(es.current("n", "k"))])
        for _ in range(60):
            await es.put(do("a", "add", 1))
        await es.put(*(put(f"x{number}", 0) for number in range(100)))
        await es.put(*(do(f"x{number}", "delitem") for number in range(100)))
    assert costs == [[2, 2], [2, 2]]


async def test_list(es):
    for key in ("b", "a", "é"):
        await es.put(put("x", 1), put("y", 1), key=key)
    await es.put(do("x", "delitem"), key="a", timestamp=9_000)
    page = await es.list("n", limit=2)
    assert page.items == [SequenceInfo("a", 3, 2, 9_000, 1), SequenceInfo("b", 2, 1, 1_000, 2)]
    assert [info.key for info in (await es.list("n", after=page.cursor)).items] == ["é"]
    assert [info.key for info in (await es.list("n", match="?")).items] == ["a", "b", "é"]
    assert (await es.list("n", prefix="x")).items == []


# --- prune and delete --------------------------------------------------------------------------------------


async def test_prune_keeps_what_the_state_needs(es):
    await es.put(put("a", opaque(1)), put("b", 1), put("c", 1), timestamp=1)
    await es.put(do("a", "add", opaque(1)), do("c", "delitem"), timestamp=2)
    await es.put(put("a", opaque(5)), timestamp=3)
    await es.put(do("a", "not_"), do("b", "neg"), timestamp=4, revision=3)
    await es.put(do("a", "not_"), timestamp=5, revision=4)
    state = await es.current("n", "k")
    assert await es.prune("n", "k") == PruneResult(4, False)
    assert await es.current("n", "k") == state
    assert brief(await es.all()) == [
        (1, "b", "setitem"),
        (3, "a", "setitem"),
        (4, "a", "not_"),
        (4, "b", "neg"),
        (5, "a", "not_"),
    ]
    assert await es.prune("n", "k") == PruneResult(0, False)
    assert (await es.list("n")).items == [SequenceInfo("k", 5, 5, 5, 2)]


async def test_prune_of_an_empty_state(es):
    await es.put(put("a", 1))
    await es.put(do("a", "delitem"))
    assert await es.prune("n", "k", remove=False) == PruneResult(2, False)
    assert await es.current("n", "k") == State(1_001, 2, {}, [])
    assert await es.past("n", "k", 1_000) is None
    assert await es.all() == []
    assert await es.prune("n", "k") == PruneResult(0, True)
    assert await es.current("n", "k") is None


async def test_delete(es):
    await es.put(put("a", 1), put("b", 1))
    await es.put(do("a", "neg"))
    assert await es.delete("n", "k") == 3
    assert await es.current("n", "k") is None
    assert await es.delete("n", "k") == 0
    assert folded(await es.put(put("c", 1), timestamp=1)) == {"c": 1}
    assert len(await es.all()) == 1


# --- concurrency -------------------------------------------------------------------------------------------


async def test_concurrent_applies_all_count(es):
    await es.put(put("a", 0))
    states = await asyncio.gather(*(es.put(do("a", "add", 1)) for _ in range(50)))
    assert sorted(state.revision for state in states) == list(range(2, 52))
    assert len({state.timestamp for state in states}) == 50
    assert sorted(folded(state)["a"] for state in states) == list(range(1, 51))
    results = await asyncio.gather(*(es.put(put("b", 1), revision=51) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, State) for result in results) == 1


async def test_readers_see_whole_states_while_others_write_and_prune(es):
    """Items a (sealed) and b (plain) always get their events together, so every state has as many of each."""
    await es.put(put("a", opaque(0)), put("b", 0))
    first = (await es.current("n", "k")).timestamp
    stop = False

    async def write():
        nonlocal stop
        for number in range(60):
            if number % 7 == 6:
                await es.put(put("a", opaque(0)), put("b", 0))
            else:
                await es.put(do("a", "add", opaque(1)), do("b", "add", 1))
        stop = True

    async def prune():
        while not stop:
            await es.prune("n", "k")
            await asyncio.sleep(0)

    async def read(current):
        seen = 0
        while not stop:
            latest = await es.current("n", "k")
            state = latest if current else await es.past("n", "k", max(latest.timestamp - 1, first))
            if state is not None and state.items:
                assert len(state.events) == folded(state)["b"] + 1
                assert state.events[-1].timestamp == state.timestamp
            seen += 1
            await asyncio.sleep(0)
        assert seen

    await asyncio.gather(write(), prune(), read(True), read(False))


# --- against a list of events ------------------------------------------------------------------------------


class Unfoldable(Exception):
    """The model refuses the events."""


def needs_client(events, new):
    """Whether the chain of a new event cannot be folded by the service from that event on."""
    if new.op == "delitem" or (new.value is not None and new.value.encoding is not Encoding.JSON):
        return False
    chain: list[Any] = []
    for event in sorted((event for event in events if event.item == new.item), key=lambda event: event.timestamp):
        if event.op in ("setitem", "delitem"):
            if event.timestamp > new.timestamp:
                break
            chain = []
        chain.append(event)
    sealed_at = [
        event.timestamp for event in chain if event.value is not None and event.value.encoding is not Encoding.JSON
    ]
    if not sealed_at:
        return False
    # A setitem of JSON is itself plain, and so is all before the first sealed event.
    return chain[-1].timestamp >= max(sealed_at[0], new.timestamp) and (new.op != "setitem" or len(chain) > 1)


def model_states(events):
    """The chains of present items after ``events``: the folded value, or the events of a sealed chain."""
    chains = {}
    for event in sorted(events, key=lambda event: event[:2]):
        _, item, op, value = event
        if op == "setitem":
            chains[item] = [event], value.encoding is Encoding.JSON, json.loads(value.data.lstrip(b"\x01"))
            continue
        if item not in chains:
            raise Unfoldable
        chain, readable, result = chains.pop(item)
        if op == "delitem":
            continue
        readable = readable and (value is None or value.encoding is Encoding.JSON)
        if readable:
            try:
                operands = [] if op in UNARY else [json.loads(value.data)]
                result = getattr(operator, op)(result, *operands)
                json.dumps(result, allow_nan=False)
            except Exception:
                raise Unfoldable from None
        chains[item] = [*chain, event], readable, result
    return chains


def model_state(events):
    chains = model_states(events)
    return (
        {item: repr(result) for item, (_, readable, result) in chains.items() if readable},
        sorted(event for chain, readable, _ in chains.values() if not readable for event in chain),
    )


def seen_state(state):
    return {item: repr(value) for item, value in folded(state).items()}, state.events


ITEMS = st.sampled_from(["a", "ab", "é"])


def changes_of(makes, proofs):
    """Changes whose values are made by one of ``makes``, those of unary operators being one of ``proofs``."""
    values = st.builds(
        lambda make, value: make(value), st.sampled_from(makes), st.integers(-2, 3) | st.sampled_from(["x", [1], 0.5])
    )
    return st.dictionaries(
        ITEMS,
        st.sampled_from(["setitem"] * 6 + ["delitem"] * 2 + sorted(OPERATORS)).flatmap(
            lambda op: st.tuples(st.just(op), st.sampled_from(proofs) if op in UNARY else values)
        ),
        min_size=1,
        max_size=3,
    ).map(lambda changes: [Change(item, op, value) for item, (op, value) in changes.items()])


UNSEALED_CHANGES = changes_of([plain, plain, opaque], [None])
SEALED_CHANGES = changes_of([sealed], [sealed(None)])
ANY_CHANGES = UNSEALED_CHANGES | SEALED_CHANGES | changes_of([plain, opaque, sealed], [None, sealed(None)])


def is_sealed(event):
    return event.value is not None and event.value.encoding is Encoding.SEALED


def resealing(event, data, **changed):
    replaced = hashlib.sha256(event.value.data).hexdigest()
    part = Reseal(event.timestamp, event.item, event.op, replaced, Value(Encoding.SEALED, data))
    return part._replace(**changed)


async def test_a_reseal_is_bounded(es):
    await es.put(put("a", sealed("x")), put("b", sealed("y")), timestamp=1)
    events = await es.all()
    for limits, code, member in (
        ({"events_per_call_max": 1}, "batch-too-large", None),
        ({"value_bytes_max": 10}, "value-too-large", "/events/0/value"),
        ({"sequence_bytes_max": 80}, "value-too-large", None),
    ):
        with pytest.raises(Problem) as caught:
            await es.under(**limits).reseal("n", "k", [resealing(event, bytes(11)) for event in events])
        assert (caught.value.code, caught.value.members.get("pointer")) == (code, member)
        assert caught.value.members["limit"] in limits.values()
    assert await es.all() == events
    # What is over the limit already may be resealed, as long as it does not grow.
    shorter = [resealing(event, bytes(3)) for event in events]
    await es.under(sequence_bytes_max=10).reseal("n", "k", shorter)
    assert {event.value.data for event in await es.all()} == {bytes(3)}


class Engine(RuleBasedStateMachine):
    """A sequence, and the list of the events that it should hold. Pages are two events long."""

    def __init__(self):
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(es_rows, "PAGE_EVENTS_MAX", 2)
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.backend = self.run(SQLiteBackend.open(f"sqlite:///{Path(self.folder.name) / 'store.db'}"))
        self.clock = Clock(20)
        self.es = Sequences(Storage(self.backend), Limits(), self.clock)
        self.answers = {}
        self.ids = itertools.count()
        self.forget()

    def forget(self):
        self.events = []
        self.exists = False
        self.last = 0
        self.revision = 0

    def run(self, awaitable):
        return self.runner.run(awaitable)

    def fitting_changes(self):
        """Changes of the kind that the sequence has."""
        if not self.events:
            return UNSEALED_CHANGES | SEALED_CHANGES
        return SEALED_CHANGES if is_sealed(self.events[0]) else UNSEALED_CHANGES

    def teardown(self):
        self.run(self.backend.close())
        self.runner.close()
        self.folder.cleanup()
        self.patches.undo()

    @rule(
        data=st.data(),
        timestamp=st.none() | st.integers(0, 40),
        tick=st.integers(0, 3),
        with_id=st.booleans(),
        with_revision=st.booleans(),
    )
    def apply(self, data, timestamp, tick, with_id, with_revision):
        changes = data.draw(self.fitting_changes() if data.draw(st.integers(0, 5)) else ANY_CHANGES)
        self.clock.now += tick
        t = timestamp
        if t is None:
            t = max(self.clock.now, self.last + 1) if self.exists else self.clock.now
        new = [StoredEvent(t, *change) for change in changes]
        events = [*self.events, *new]
        codes = set()
        if any(event.timestamp == t for event in self.events):
            codes.add("timestamp-taken")
        else:
            try:
                expected = model_state(events)
            except Unfoldable:
                codes.add("unfoldable-event")
            if not with_revision and any(needs_client(events, event) for event in new):
                codes.add("revision-conflict")
        if len(set(map(is_sealed, events))) > 1:
            codes = {"sealing-mismatch"}
        options = {
            "timestamp": timestamp,
            "write_id": f"id-{next(self.ids)}" if with_id else None,
            "revision": self.revision if with_revision else None,
        }
        if codes:
            with pytest.raises(Problem) as caught:
                self.run(self.es.put(*changes, **options))
            assert caught.value.code in codes
            return
        state = self.run(self.es.put(*changes, **options))
        self.last = max(self.last, t) if self.exists else t
        self.exists = True
        self.revision += 1
        self.events = sorted(events, key=lambda event: event[:2])
        assert seen_state(state) == expected
        assert state[:2] == (self.last, self.revision)
        if with_id:
            self.answers[options["write_id"]] = changes, options, self.last, self.revision

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def repeat(self, data):
        changes, options, last, revision = self.answers[data.draw(st.sampled_from(sorted(self.answers)))]
        state = self.run(self.es.put(*changes, **options))
        assert (state.timestamp, state.revision) == (last, revision)

    @rule(t=st.integers(-1, 45))
    def past(self, t):
        state = self.run(self.es.past("n", "k", t))
        events = [event for event in self.events if event.timestamp <= t]
        if not self.exists or (not events and t < self.last):
            assert state is None
            return
        assert seen_state(state) == model_state(events)
        assert state.timestamp == (self.last if t >= self.last else events[-1].timestamp)

    @rule(
        start=st.none() | st.integers(0, 40),
        end=st.none() | st.integers(0, 40),
        ops=st.none() | st.sets(st.sampled_from(["setitem", "add", "neg"])),
        item=st.none() | ITEMS,
        n=st.none() | st.integers(0, 5),
    )
    def read_events(self, start, end, ops, item, n):
        events = self.run(self.es.all(start=start, end=end, ops=ops, item=item, n=n))
        expected = [
            event
            for event in self.events
            if (start is None or event.timestamp >= start)
            and (end is None or event.timestamp <= end)
            and (ops is None or event.op in ops)
            and (item is None or event.item == item)
        ][:n]
        assert events == (expected if self.exists else None)

    @precondition(lambda self: any(map(is_sealed, self.events)))
    @rule(data=st.data(), length=st.integers(0, 9))
    def reseal(self, data, length):
        picked = data.draw(st.lists(st.sampled_from(list(filter(is_sealed, self.events))), min_size=1, unique=True))
        new = {
            event: event._replace(value=Value(Encoding.SEALED, event.value.data.rstrip() + b" " * length))
            for event in picked
        }
        self.run(self.es.reseal("n", "k", [resealing(old, event.value.data) for old, event in new.items()]))
        self.events = [new.get(event, event) for event in self.events]

    @rule(remove=st.booleans())
    def prune(self, remove):
        result = self.run(self.es.prune("n", "k", remove=remove))
        needed = sorted(event for chain, *_ in model_states(self.events).values() for event in chain)
        gone = remove and self.exists and not needed
        assert result == PruneResult(len(self.events) - len(needed), gone)
        self.events = needed
        if gone:
            self.forget()

    @rule(sometimes=st.integers(0, 4))
    def delete(self, sometimes):
        if sometimes == 0:
            assert self.run(self.es.delete("n", "k")) == len(self.events)
            self.forget()

    @invariant()
    def the_current_state_is_the_models(self):
        state = self.run(self.es.current("n", "k"))
        assert (state is not None) == self.exists
        if self.exists:
            assert seen_state(state) == model_state(self.events)
            assert state[:2] == (self.last, self.revision)
            assert list(state.items) == sorted(state.items)

    @invariant()
    def the_head_counts_right(self):
        infos = self.run(self.es.list("n")).items
        present = len(model_states(self.events))
        assert infos == (
            [SequenceInfo("k", len(self.events), self.revision, self.last, present)] if self.exists else []
        )
        if self.exists:
            place = Place("n", Kind.ES, "k")
            head, found = self.run(self.es.storage.read(HeadRead(place), RowScan(place, 1)))
            rows = [es_rows.decode_item(row) for row in found.items]
            assert es_rows.decode_meta(head.meta).size == sum(map(es_rows.state_size, rows))


TestEngine = Engine.TestCase
# Shrinking takes minutes, for every step writes to a disk; twenty steps can be read as they are.
TestEngine.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
