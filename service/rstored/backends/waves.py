"""Waves: which updates of a batch can be carried out side by side, for backends that run plans in step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rstored.backends.abc import Kind, Place, Update, namespace_place

__all__ = ["waves"]


def waves(updates: Sequence[Update[Any]]) -> list[list[int]]:
    """The updates' positions in waves: those of one wave share no record, and those that do keep their order.

    A namespace is shared by all who use it, unless one of them names its record.
    """
    found: list[list[int]] = []
    # The first wave that may touch a record, and that may name a namespace's record.
    free: dict[Place, int] = {}
    unused: dict[str, int] = {}
    for position, update in enumerate(updates):
        wave = 0
        for place in update.places:
            if place.kind is Kind.NAMESPACE:
                wave = max(wave, unused.get(place.key, 0))
            wave = max(wave, free.get(place, 0), free.get(namespace_place(place.namespace), 0))
        for place in update.places:
            free[place] = wave + 1
            unused[place.namespace] = max(unused.get(place.namespace, 0), wave + 1)
        if wave == len(found):
            found.append([])
        found[wave].append(position)
    return found
