"""Whether a history of concurrent operations is linearisable: a pure checker, after Wing and Gong, and Lowe.

A history is linearisable if each operation can be given one moment between its call and its return such that, done
one after the other in order of those moments, all answer what they answered. An operation of unknown outcome may have
taken effect at any moment after its call, or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

UNKNOWN = object()
"""The answer of an operation that was not answered."""

Step: TypeAlias = Callable[[Hashable, Any], tuple[Hashable, Any]]
"""What an object is: from its state and an action, to its next state and the answer."""


class Operation(NamedTuple):
    """An action on one object, from its call until its answer was there. Times are of one clock, in any unit."""

    called: float
    returned: float
    action: Any
    answer: Any = UNKNOWN

    @property
    def until(self) -> float:
        """Until when it may take effect."""
        return math.inf if self.answer is UNKNOWN else self.returned


def violation(history: Sequence[Operation], step: Step, initial: Hashable) -> str | None:
    """None if the history of one object is linearisable, else where every attempt to put it in order ended.

    Searches depth first for an order, and goes nowhere twice: what is left to do depends only on which operations
    are done and on the state that they made.
    """
    operations = sorted(history, key=lambda operation: operation.called)
    certain = sum(1 << n for n, operation in enumerate(operations) if operation.answer is not UNKNOWN)
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    seen = set(stack)
    furthest, stuck = -1, ""
    while stack:
        done, state = stack.pop()
        if done & certain == certain:
            return None
        next_ones = _next(operations, done)
        if (done & certain).bit_count() > furthest:
            furthest = (done & certain).bit_count()
            stuck = f"{furthest} of {certain.bit_count()} in order, then in state {state!r} none of " + "; ".join(
                str(operations[n]) for n in next_ones
            )
        # An operation that must come early is tried first, and one that may never have happened is tried last.
        for n in sorted(next_ones, key=lambda n: operations[n].until, reverse=True):
            after, answer = step(state, operations[n].action)
            if operations[n].answer is UNKNOWN:
                if after == state:
                    continue
            elif answer != operations[n].answer:
                continue
            place = (done | 1 << n, after)
            if place not in seen:
                seen.add(place)
                stack.append(place)
    return stuck


def _next(operations: Sequence[Operation], done: int) -> list[int]:
    """Which may be done next: those that were called before any that is not done had returned."""
    found = []
    horizon = math.inf
    first = (~done & done + 1).bit_length() - 1
    for n in range(first, len(operations)):
        if operations[n].called > horizon:
            break
        if not done >> n & 1:
            found.append(n)
            horizon = min(horizon, operations[n].until)
    return [n for n in found if operations[n].called <= horizon]
