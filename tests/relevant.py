"""Which events a state is made of, said as plainly as can be, for tests that play or watch a service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

EventT = TypeVar("EventT", bound=tuple[int, str, str, Any])


def relevant(events: Iterable[EventT]) -> list[EventT]:
    """The events that the state still needs, in their order: the chains that have not ended.

    Two events never cancel each other: ``not not 5`` is True. It looks only at the names of operators.
    """
    # Going backwards, the first setitem or delitem of an item makes all events before it needless.
    decided: set[str] = set()
    needed: list[EventT] = []
    for event in reversed(list(events)):
        _, item, op, _ = event
        if item in decided:
            continue
        if op in ("setitem", "delitem"):
            decided.add(item)
        if op != "delitem":
            needed.append(event)
    needed.reverse()
    return needed
