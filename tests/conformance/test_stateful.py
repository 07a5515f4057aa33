"""A store behaves like plain dicts, whatever is done to it, in whatever order."""

from __future__ import annotations

import copy
import functools
import math
import operator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from rstore import StoreConflictError, StoreIntegrityError

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UNARY = (operator.delitem, operator.neg, operator.not_)
BINARY = (
    *(operator.setitem, operator.add, operator.concat, operator.floordiv, operator.mod, operator.mul),
    *(operator.pow, operator.sub, operator.truediv),
)

keys = st.sampled_from(["a", "b", "a/b", "é"])
items = st.sampled_from(["x", "y", "z/é"])
values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3))
near = st.integers(-30, 30)
timestamps = st.one_of(near, near, near, st.sampled_from([INT64_MIN, -(2**53) - 1, 2**53, 2**53 + 1, INT64_MAX]))
bounds = st.none() | timestamps
operands = st.one_of(
    st.integers(-3, 5), st.sampled_from(["a", "%s", 0.5, True, None]), st.lists(st.integers(0, 2), max_size=2)
)
changes = st.one_of(
    st.tuples(st.just(operator.setitem), operands),
    st.tuples(st.just(operator.setitem), operands),
    st.tuples(st.sampled_from(BINARY), operands),
    st.tuples(st.sampled_from(UNARY)),
)


class Unfoldable(Exception):
    """The model cannot fold the events."""


def fold(events, *, plain):
    """The state after ``events``, in their order, by Python's own operators."""
    state = {}
    for _, item, op, value in events:
        if op is operator.setitem:
            state[item] = copy.deepcopy(value)
        elif item not in state:
            raise Unfoldable
        elif op is operator.delitem:
            del state[item]
        else:
            operand = copy.deepcopy(value)
            if (
                op is operator.pow
                and isinstance(operand, float)
                and isinstance(state[item], (int, float))
                and state[item] < 0
            ):
                raise Unfoldable if plain else TooMuch
            try:
                state[item] = op(state[item]) if op in UNARY else op(state[item], operand)
            except (TypeError, ValueError, ArithmeticError):
                raise Unfoldable from None
            if (
                len(repr(state[item])) > 4_000
                if not isinstance(state[item], int)
                else state[item].bit_length() > 10_000
            ):
                raise TooMuch
            if plain and isinstance(state[item], float) and not math.isfinite(state[item]):
                raise Unfoldable
    return state


class TooMuch(Exception):
    """Near a limit, or a complex number (which a sealed sequence may hold): the model keeps out of it."""


def typed(value):
    """A value with its types."""
    if isinstance(value, dict):
        return {key: typed(member) for key, member in value.items()}
    if isinstance(value, list):
        return [typed(member) for member in value]
    return type(value), repr(value)


class StoreMachine(RuleBasedStateMachine):
    """Key/value pairs, time series and event sequences beside their models."""

    def __init__(self, portal, open_store, *, plain):
        super().__init__()
        self.portal = portal
        self.open_store = open_store
        self.plain = plain

    def call(self, name, *arguments, **options):
        async def run():
            return await getattr(self.store, name)(*arguments, **options)

        return self.portal.call(run)

    @initialize()
    def begin(self):
        self.store = self.portal.call(self.open_store)
        self.pairs, self.etags, self.series, self.sequences, self.clocks = {}, {}, {}, {}, {}

    # --- key/value

    @rule(key=keys, value=values)
    def set(self, key, value):
        self.etags[key] = self.call("set", key, value)
        self.pairs[key] = value

    @rule(key=keys, value=values, other=keys)
    def set_if_match(self, key, value, other):
        etag = self.etags.get(other, "none")
        if key not in self.pairs or self.etags[key] != etag:
            with pytest.raises(StoreConflictError):
                self.call("set", key, value, if_match=etag)
            return
        self.etags[key] = self.call("set", key, value, if_match=etag)
        self.pairs[key] = value

    @rule(key=keys, value=values)
    def set_if_absent(self, key, value):
        if key in self.pairs:
            with pytest.raises(StoreConflictError):
                self.call("set", key, value, if_absent=True)
            return
        self.etags[key] = self.call("set", key, value, if_absent=True)
        self.pairs[key] = value

    @rule(mapping=st.dictionaries(keys, values))
    def set_many(self, mapping):
        self.etags.update(self.call("set_many", mapping))
        self.pairs.update(mapping)

    @rule(gone=st.lists(keys, max_size=2))
    def delete(self, gone):
        self.call("delete", *gone)
        for key in gone:
            self.pairs.pop(key, None)
            self.etags.pop(key, None)

    @rule(key=keys)
    def read_pairs(self, key):
        expected = sorted(self.pairs.items(), key=lambda pair: pair[0].encode())
        assert typed([list(pair) for pair in self.call("find")]) == typed([list(pair) for pair in expected])
        assert self.call("keys") == [name for name, _ in expected]
        assert self.call("count") == len(expected)
        assert self.call("has", key) == (key in self.pairs)
        assert typed(self.call("get", key, "default")) == typed(self.pairs.get(key, "default"))
        entry = self.call("entry", key)
        assert (entry and entry.etag) == self.etags.get(key)

    # --- time series

    @rule(key=keys, points=st.lists(st.tuples(timestamps, values), max_size=8))
    def extend(self, key, points):
        self.call("extend", key, *points)
        if points:
            self.series.setdefault(key, {}).update(points)

    @rule(key=keys, start=near, count=st.integers(300, 1500), step=st.integers(1, 3))
    def extend_much(self, key, start, count, step):
        points = [(start + number * step, number) for number in range(count)]
        self.call("extend", key, *points)
        self.series.setdefault(key, {}).update(points)

    @rule(gone=st.lists(keys, min_size=1, max_size=2), start=bounds, end=bounds)
    def remove(self, gone, start, end):
        if start is not None and end is not None and end < start:
            start, end = end, start
        self.call("remove", *gone, start=start, end=end)
        low, high = INT64_MIN if start is None else start, INT64_MAX if end is None else end
        for key in gone:
            kept = {t: value for t, value in self.series.pop(key, {}).items() if not low <= t <= high}
            if kept:
                self.series[key] = kept

    @rule(key=keys, start=bounds, end=bounds, n=st.none() | st.integers(0, 20), freq=st.none() | st.integers(1, 50))
    def range(self, key, start, end, n, freq):
        if start is not None and end is not None and end < start:
            start, end = end, start
        low, high = INT64_MIN if start is None else start, INT64_MAX if end is None else end
        expected: list[tuple[int, Any]] = []
        for t, value in sorted(self.series.get(key, {}).items(), key=lambda point: point[0]):
            if low <= t <= high and (freq is None or not expected or t - expected[-1][0] >= freq):
                expected.append((t, value))
        expected = expected if n is None else expected[:n]
        got = self.call("range", key, start, end=end, n=n, freq=freq)
        assert typed([list(point) for point in got]) == typed([list(point) for point in expected])

    @rule(key=keys, start=near, length=st.integers(0, 60), freq=st.integers(1, 9))
    def missing(self, key, start, length, freq):
        end = start + length
        expected = [t for t in range(start, end + 1, freq) if t not in self.series.get(key, {})]
        assert self.call("missing", key, start, end, freq) == expected
        assert self.call("iscomplete", key, start, end, freq) is (not expected)

    @rule(key=keys)
    def read_series(self, key):
        assert self.call("timeseries") == sorted(self.series, key=str.encode)
        points = self.series.get(key)
        for name, pick in (("first", min), ("last", max)):
            got = self.call(name, key)
            assert got == ((pick(points), points[pick(points)]) if points else None)

    # --- event sequences

    @rule(key=keys, wanted=st.dictionaries(items, changes, max_size=3), t=st.none() | st.none() | timestamps)
    def apply(self, key, wanted, t):
        if t == INT64_MAX:
            t = INT64_MAX - 1_000_000  # so that the sequence can go on
        events = self.sequences.get(key, [])
        expected_error = None
        state = None
        if wanted and t is not None and any(event[0] == t for event in events):
            expected_error = "timestamp-taken"
        else:
            at = INT64_MAX if t is None else t
            new = [(at, item, change[0], change[1] if len(change) > 1 else None) for item, change in wanted.items()]
            merged = sorted([*events, *new], key=lambda event: (event[0], event[1].encode()))
            try:
                state = fold(merged, plain=self.plain)
            except TooMuch:
                return
            except Unfoldable:
                expected_error = "unfoldable-event"
        if expected_error is not None:
            with pytest.raises(StoreIntegrityError) as caught:
                self.call("apply", key, wanted, t=t)
            assert caught.value.code == expected_error
            return
        got = self.call("apply", key, wanted, t=t)
        if not wanted:
            assert typed(got) == typed(state if key in self.sequences else None)
            return
        assert typed(got) == typed(state)
        at = t
        if at is None:
            stored = self.call("events", key)
            at = max(event[0] for event in stored)
            assert at > self.clocks.get(key, INT64_MIN)
        self.clocks[key] = max(at, self.clocks.get(key, INT64_MIN))
        new = [(at, item, change[0], change[1] if len(change) > 1 else None) for item, change in wanted.items()]
        self.sequences[key] = sorted([*events, *new], key=lambda event: (event[0], event[1].encode()))

    @rule(key=keys, t=timestamps)
    def read_states(self, key, t):
        events = self.sequences.get(key)
        assert self.call("eventsources") == sorted(self.sequences, key=str.encode)
        current = self.call("current", key)
        assert typed(current) == typed(None if events is None else fold(events, plain=self.plain))
        earlier = [event for event in events or [] if event[0] <= t]
        if earlier or not events:
            expected = (earlier[-1][0], typed(fold(earlier, plain=self.plain))) if earlier else None
            got = self.call("past", key, t, withtimestamp=True)
            if events:
                assert (got[0], typed(got[1])) == expected
            elif events is None:
                assert got is None

    @rule(key=keys, start=bounds, end=bounds, ops=st.none() | st.sets(st.sampled_from(BINARY + UNARY), min_size=1))
    def events(self, key, start, end, ops):
        if start is not None and end is not None and end < start:
            start, end = end, start
        low, high = INT64_MIN if start is None else start, INT64_MAX if end is None else end
        expected = self.sequences.get(key)
        if expected is not None:
            expected = [event for event in expected if low <= event[0] <= high and (ops is None or event[2] in ops)]
        got = self.call("events", key, start, end, ops)
        assert (got is None) == (expected is None)
        assert typed([list(event) for event in got or []]) == typed([list(event) for event in expected or []])

    @rule(key=keys, remove=st.booleans())
    def prune(self, key, remove):
        self.call("prune", key, remove=remove)
        if key not in self.sequences:
            return
        needed = []
        for item in {event[1] for event in self.sequences[key]}:
            chain = [event for event in self.sequences[key] if event[1] == item]
            start = max(i for i, event in enumerate(chain) if event[2] in (operator.setitem, operator.delitem))
            needed += chain[start:] if chain[start][2] is operator.setitem else []
        if needed or not remove:
            self.sequences[key] = sorted(needed, key=lambda event: (event[0], event[1].encode()))
        else:
            del self.sequences[key], self.clocks[key]

    @rule()
    def discard(self):
        self.call("discard")
        self.store = self.portal.call(self.open_store)
        self.pairs, self.etags, self.series, self.sequences, self.clocks = {}, {}, {}, {}, {}


def test_a_store_behaves_like_plain_dicts(case, deployment, fresh_namespace):
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(case.connect(deployment)) as driver,
    ):

        async def open_store():
            return await driver.open(fresh_namespace(), key=case.key)

        machine: Any = functools.partial(StoreMachine, portal, open_store, plain=not case.sealed)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=20,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize("seed", [1])
def test_the_model_itself_refuses_what_python_refuses(seed):
    with pytest.raises(Unfoldable):
        fold([(seed, "a", operator.add, 1)], plain=True)
