"""Event sequences: an item's chain of events, and what folding one again may cost."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec

from rstore.core.encodings import Encoding, InvalidJSON, check_numbers, parse_json, render_json
from rstore.core.numeric import INT64_MIN
from rstore.core.operators import ASSIGNING, JsonValue, UnfoldableEvent, apply_json
from rstored.backends.abc import Place, Query, Row, Slice
from rstored.engine.es.rows import LONG_BYTES, ItemRow, event_size, item_scan, paged, stored_event
from rstored.engine.model import StoredEvent

__all__ = ["Chain", "NeedsClient", "Refolding", "chain_start", "json_value"]


class Chain(NamedTuple):
    """A chain of events being followed: its row, and the folded value as far as ``row.data`` is not yet its text."""

    row: ItemRow
    json: JsonValue | None = None

    @classmethod
    def begun(cls, event: StoredEvent) -> Chain:
        """The chain that a setitem begins."""
        assert event.value is not None
        t, (encoding, data) = event.timestamp, event.value
        return cls(ItemRow(t, t, 1, event_size(event), encoding is Encoding.JSON, encoding, data))

    def extended(self, event: StoredEvent, bytes_max: int | None) -> Chain:
        """The chain with one more event, of an operator that neither begins nor ends one. Raises UnfoldableEvent.

        Without ``bytes_max``, the most that the folded text may have, it becomes a sealed one.
        """
        row, value = self.row, event.value
        json: JsonValue | None = None
        if row.plain and bytes_max is not None and (value is None or value.encoding is Encoding.JSON):
            current = self.json or json_value(row.data)
            operand = None if value is None else json_value(value.data)
            json = apply_json(event.op, current, operand, bytes_max=bytes_max)
        size = row.size + event_size(event)
        plain = json is not None
        return Chain(ItemRow(row.start, event.timestamp, row.length + 1, size, plain, Encoding.JSON, b""), json)

    def stored(self) -> ItemRow:
        """The row to store."""
        return self.row if self.json is None else msgspec.structs.replace(self.row, data=render_json(self.json.value))


class Refolding:
    """How much one apply in the past may still fold again: all other writers wait for it."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._left = events_max

    def spend(self, chain: Chain | None = None) -> None:
        """Count an event, and more than once if what its chain comes to is long. Raises UnfoldableEvent at the end."""
        self._left -= 1 if chain is None or chain.json is None else 1 + chain.json.size // LONG_BYTES
        if self._left < 0:
            raise UnfoldableEvent(
                f"more than {self._events_max} events would have to be folded again, or fewer with long values:"
                " apply it at a later timestamp, or at none"
            )


class NeedsClient(Exception):
    """An event would continue, unchecked, a chain that only a client can fold."""


def chain_start(place: Place, item: str, t: int, refolding: Refolding) -> Generator[Query, list[Any], int | None]:
    """The timestamp of the setitem whose chain goes on until ``t``; None if the item is absent then."""
    end = t
    while end > INT64_MIN:
        scan = paged(item_scan(place, item, INT64_MIN, end - 1))
        found: Slice[Row]
        (found,) = yield (scan._replace(descending=True),)
        for event in map(stored_event, found.items):
            if event.op in ASSIGNING:
                return event.timestamp if event.op == "setitem" else None
            end = event.timestamp
            refolding.spend()
        if not found.more:
            break
    return None


def json_value(data: bytes) -> JsonValue:
    """A JSON value for an operator to compute with. Raises UnfoldableEvent."""
    try:
        check_numbers(data)
    except InvalidJSON as error:
        raise UnfoldableEvent(f"operators compute with doubles, and {error}") from None
    # What is stored was checked when it came, perhaps under another limit.
    return JsonValue.of(parse_json(data, nesting_max=sys.maxsize))
