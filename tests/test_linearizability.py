"""The checker of histories: what it accepts and what it does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linearizability import UNKNOWN, Operation, violation


def register(state, action):
    """A value that is read, written, or written if it is what one thinks."""
    match action:
        case ("get",):
            return state, state
        case ("set", value):
            return value, "ok"
        case ("cas", expected, value):
            return (value, True) if state == expected else (state, False)
    raise AssertionError(action)


def history(*lines):
    """Operations on one line of time each: ``(called, returned, action, answer)``."""
    return [Operation(*line) for line in lines]


def test_nothing_and_one_after_the_other():
    assert violation([], register, None) is None
    one_by_one = history(
        (0, 1, ("get",), None), (2, 3, ("set", 1), "ok"), (4, 5, ("cas", 1, 2), True), (6, 7, ("get",), 2)
    )
    assert violation(one_by_one, register, None) is None


@pytest.mark.parametrize("seen", [(1, 1), (1, 2), (2, 2)])
def test_a_read_beside_a_write_may_see_it_or_not(seen):
    reads = [(3 + 2 * n, 4 + 2 * n, ("get",), value) for n, value in enumerate(seen)]
    assert violation(history((0, 1, ("set", 1), "ok"), (2, 9, ("set", 2), "ok"), *reads), register, None) is None


def test_the_order_of_returns_is_not_the_order_of_effects():
    # The write that was called first and returned last took effect between the two others.
    overlapping = history(
        (0, 9, ("set", 1), "ok"),
        (1, 2, ("set", 2), "ok"),
        (3, 4, ("get",), 1),
        (5, 6, ("set", 3), "ok"),
        (10, 11, ("get",), 3),
    )
    assert violation(overlapping, register, None) is None


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([(0, 1, ("set", 1), "ok"), (2, 3, ("set", 2), "ok"), (4, 5, ("get",), 1)], id="stale-read"),
        pytest.param(
            [(0, 9, ("set", 1), "ok"), (1, 2, ("get",), 1), (3, 4, ("get",), None)], id="a-read-that-goes-back"
        ),
        pytest.param([(0, 1, ("set", 1), "ok"), (2, 3, ("get",), None)], id="lost-write"),
        pytest.param([(0, 1, ("get",), 7)], id="a-value-from-nowhere"),
        pytest.param([(0, 1, ("get",), 1), (2, 3, ("set", 1), "ok")], id="a-read-of-the-future"),
        pytest.param(
            [(0, 9, ("cas", None, 1), True), (1, 8, ("cas", None, 2), True)], id="two-who-compare-and-set-the-same"
        ),
        pytest.param(
            [(0, 1, ("set", 5), "ok"), (2, 9, ("cas", 5, 6), True), (3, 8, ("cas", 5, 7), True), (10, 11, ("get",), 7)],
            id="lost-update",
        ),
        pytest.param([(0, 1, ("cas", None, 1), False)], id="a-refusal-without-reason"),
        pytest.param(
            [(0, 1, ("set", 1), UNKNOWN), (2, 3, ("get",), 1), (4, 5, ("get",), None)], id="an-unknown-write-undone"
        ),
        pytest.param(
            [(2, 3, ("set", 1), UNKNOWN), (0, 1, ("get",), 1)], id="an-unknown-write-seen-before-it-was-called"
        ),
        pytest.param(
            [
                (0, 1, ("set", 1), UNKNOWN),
                (2, 3, ("get",), 1),
                (4, 5, ("set", 2), "ok"),
                (6, 7, ("get",), 1),
            ],
            id="an-unknown-write-that-happens-twice",
        ),
    ],
)
def test_it_refuses(wrong):
    assert violation(history(*wrong), register, None) is not None


def test_what_is_unknown_may_happen_late_or_never():
    unknown = (0, 1, ("set", 1), UNKNOWN)
    for reads in ([None, None], [None, 1], [1, 1]):
        lines = [(2 + 2 * n, 3 + 2 * n, ("get",), value) for n, value in enumerate(reads)]
        assert violation(history(unknown, *lines), register, None) is None
    # Long after others wrote.
    late = history(unknown, (2, 3, ("set", 2), "ok"), (4, 5, ("get",), 2), (6, 7, ("get",), 1))
    assert violation(late, register, None) is None
    # An unknown compare-and-set happens only where it can.
    refused = history((0, 1, ("cas", 3, 4), UNKNOWN), (2, 3, ("set", 2), "ok"), (4, 5, ("get",), 4))
    assert violation(refused, register, None) is not None


def test_it_says_where_it_got_stuck():
    told = violation(history((0, 1, ("set", 1), "ok"), (2, 3, ("get",), 5)), register, None)
    assert told is not None
    assert told.startswith("1 of 2 in order, then in state 1 none of ")
    assert "answer=5" in told


actions = st.one_of(
    st.just(("get",)),
    st.tuples(st.just("set"), st.integers(0, 3)),
    st.tuples(st.just("cas"), st.integers(0, 3), st.integers(0, 3)),
)


@given(st.lists(actions, max_size=40), st.randoms(use_true_random=False), st.integers(0, 4))
def test_whatever_happened_in_some_order_is_accepted_and_a_wrong_last_read_is_not(
    done: list[tuple[object, ...]], chance: random.Random, unknown: int
):
    """Effects one after the other, and around each of them a call and a return at random, which may overlap others."""
    state = None
    operations = []
    for moment, action in enumerate(done):
        state, answer = register(state, action)
        operations.append(Operation(moment - chance.uniform(0, 4), moment + chance.uniform(0, 4), action, answer))
    end = len(done) + 10
    last = Operation(end, end + 1, ("get",), state)
    assert violation([*operations, last], register, None) is None
    assert violation([*operations, last._replace(answer="never written")], register, None) is not None
    for n in chance.sample(range(len(operations)), min(unknown, len(operations))):
        operations[n] = operations[n]._replace(answer=UNKNOWN)
    assert violation([*operations, last], register, None) is None


def test_long_histories_take_no_time_for_each_order():
    """Eight at once, again and again: their orders are more than can be tried one by one."""
    lines: list[Any] = []
    for turn in range(20):
        lines += [(turn * 10 + n / 100, turn * 10 + 5, ("set", turn), "ok") for n in range(8)]
        lines.append((turn * 10 + 6, turn * 10 + 7, ("get",), turn))
    assert violation(history(*lines), register, None) is None
    assert violation(history(*lines, (1000, 1001, ("get",), "other")), register, None) is not None
