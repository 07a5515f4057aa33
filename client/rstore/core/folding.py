"""Folding: from events to the state that they make.

An event is ``(timestamp, item, op, value)`` with the operator's name, in any tuple. The events of one item form
**chains**: a ``setitem`` begins one (and ends the one before), a ``delitem`` ends one, and every other operator
continues it. The state consists of the chains that have not ended. The names of the operators alone say to which chain
an event belongs, so nobody needs to read the values for that.

The state is a dict in order of item (by code point, which is the order of the items' UTF-8), not of insertion. So the
order is the same in SDK and service, and pruning does not change it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rstore.core.bounds import Bounds, UnfoldableEvent
from rstore.core.memory import Spend, free
from rstore.core.operators import apply_operator


def present_after(op: str, present: bool) -> bool:
    """Whether an item is there after an event, given whether it was before.

    Raises :class:`~rstore.core.operators.UnfoldableEvent` if the operator needs an item that is not there.

    >>> present_after("setitem", False), present_after("delitem", True)
    (True, False)
    """
    if not present and op != "setitem":
        raise UnfoldableEvent(f"{op} needs an item that is present, and it is absent")
    return op != "delitem"


def apply_event(
    state: dict[str, Any], item: str, op: str, value: Any, bounds: Bounds | None = None, spend: Spend = free
) -> None:
    """Change ``state`` as one event says. It replaces values, and never changes them.

    It calls ``spend`` with how many more bytes of memory a computed value takes than the one before. If it raises
    :class:`~rstore.core.operators.UnfoldableEvent`, the state is as it was.

    >>> state = {"a": 1}
    >>> apply_event(state, "a", "add", 2)
    >>> state
    {'a': 3}
    """
    try:
        if not present_after(op, item in state):
            del state[item]
        elif op == "setitem":
            state[item] = value
        else:
            current = state[item]
            state[item] = result = apply_operator(op, current, value, bounds or Bounds())
            spend(sys.getsizeof(result) - sys.getsizeof(current))
    except UnfoldableEvent as error:
        error.item = item
        raise


def fold(
    events: Iterable[tuple[int, str, str, Any]], bounds: Bounds | None = None, spend: Spend = free
) -> dict[str, Any]:
    """The state that events make, in order of item. The events are in order of timestamp, and their values are decoded.

    ``spend`` as in :func:`apply_event`. Raises :class:`~rstore.core.operators.UnfoldableEvent` with the ``item`` and
    ``timestamp`` of the event that cannot be applied.

    >>> fold([(1, "b", "setitem", 5), (1, "a", "setitem", "x"), (2, "b", "mul", 2), (3, "a", "concat", "y")])
    {'a': 'xy', 'b': 10}
    """
    state: dict[str, Any] = {}
    for timestamp, item, op, value in events:
        try:
            apply_event(state, item, op, value, bounds, spend)
        except UnfoldableEvent as error:
            error.timestamp = timestamp
            raise
    return dict(sorted(state.items()))
