"""Folding, against a plain dict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.relevant import relevant

from rstore.core.bounds import Bounds, UnfoldableEvent
from rstore.core.folding import apply_event, fold, present_after
from rstore.core.operators import OPERATORS, UNARY


@pytest.mark.parametrize("op", OPERATORS)
def test_presence_follows_from_the_operator_alone(op):
    assert present_after(op, True) is (op != "delitem")
    if op == "setitem":
        assert present_after(op, False) is True
    else:
        with pytest.raises(UnfoldableEvent, match=f"{op} needs an item that is present"):
            present_after(op, False)


def test_a_refused_event_changes_nothing_and_is_named():
    state = {"a": 1}
    for item, op, value in [("a", "add", "x"), ("b", "neg", None), ("b", "delitem", None), ("a", "sub", 2**64)]:
        with pytest.raises(UnfoldableEvent) as caught:
            apply_event(state, item, op, value, Bounds(integer_bits_max=8))
        assert caught.value.item == item
        assert str(caught.value) == f"the event of item {item!r} cannot be applied: {caught.value.reason}"
        assert state == {"a": 1}
    with pytest.raises(UnfoldableEvent) as caught:
        fold([(1, "a", "setitem", 1), (7, "a", "truediv", 0)])
    assert (caught.value.item, caught.value.timestamp) == ("a", 7)


def test_the_state_is_in_order_of_item():
    events = [(1, "é", "setitem", 1), (1, "z", "setitem", 1), (2, "a", "setitem", 1), (3, "😀", "setitem", 1)]
    assert list(fold(events)) == ["a", "z", "é", "😀"] == sorted(fold(events), key=str.encode)


def test_no_pair_cancels():
    events = [(1, "a", "setitem", 5), (2, "a", "not_", None), (3, "a", "not_", None)]
    assert relevant(events) == events
    assert fold(events) == {"a": True}


def test_a_stored_value_is_never_changed():
    stored = [1]
    state = fold([(1, "a", "setitem", stored), (2, "a", "add", [2]), (3, "a", "mul", 2)])
    assert state == {"a": [1, 2, 1, 2]}
    assert stored == [1]


items = st.sampled_from(["a", "b", "c"])
values = st.integers(-3, 3) | st.text("xy", max_size=2) | st.lists(st.integers(0, 1), max_size=2)
computing = st.sampled_from(sorted(OPERATORS.keys() - {"setitem", "delitem"}))


class Folding(RuleBasedStateMachine):
    """Events as they come, and the dict that they make."""

    def __init__(self):
        super().__init__()
        self.events = []
        self.model = {}

    def record(self, item, op, value):
        self.events.append((len(self.events), item, op, value))

    @rule(item=items, value=values)
    def setitem(self, item, value):
        self.record(item, "setitem", value)
        self.model[item] = value

    @rule(item=items)
    def delitem(self, item):
        if item not in self.model:
            with pytest.raises(UnfoldableEvent):
                fold([*self.events, (len(self.events), item, "delitem", None)])
            return
        self.record(item, "delitem", None)
        del self.model[item]

    @rule(item=items, op=computing, value=values)
    def compute(self, item, op, value):
        value = None if op in UNARY else value
        try:
            result = OPERATORS[op](self.model[item]) if op in UNARY else OPERATORS[op](self.model[item], value)
        except Exception:
            with pytest.raises(UnfoldableEvent):
                fold([*self.events, (len(self.events), item, op, value)])
            return
        if len(str(result)) > 100:
            return
        self.record(item, op, value)
        self.model[item] = result

    @invariant()
    def the_fold_is_the_dict(self):
        assert fold(self.events) == dict(sorted(self.model.items()))

    @invariant()
    def what_is_relevant_is_enough_and_no_more(self):
        needed = relevant(self.events)
        assert fold(needed) == self.model
        assert [event for event in self.events if event in needed] == needed
        assert relevant(needed) == needed
        assert {item for _, item, _, _ in needed} == set(self.model)
        assert sum(op == "setitem" for _, _, op, _ in needed) == len(self.model)
        assert relevant([(t, item, op, b"") for t, item, op, _ in self.events]) == [
            (t, item, op, b"") for t, item, op, _ in needed
        ]


TestFolding = Folding.TestCase
TestFolding.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(st.lists(st.tuples(items, st.sampled_from(sorted(OPERATORS))), max_size=12))
def test_presence_agrees_with_the_fold(steps):
    """With a value that takes every operator, only presence decides."""

    class Anything:
        def __getattr__(self, name):
            raise AttributeError

        def __neg__(self):
            return self

        def __getitem__(self, index):
            return self

    for name in ("add", "floordiv", "mod", "mul", "pow", "sub", "truediv"):
        setattr(Anything, f"__{name}__", lambda self, other: self)
    one = Anything()
    present: set[str] = set()
    events: list[Any] = []
    for t, (item, op) in enumerate(steps):
        if op == "not_":
            continue
        event = (t, item, op, None if op in UNARY else one)
        try:
            now_present = present_after(op, item in present)
        except UnfoldableEvent:
            with pytest.raises(UnfoldableEvent):
                fold([*events, event])
            continue
        present = present | {item} if now_present else present - {item}
        events.append(event)
        assert set(fold(events)) == present
