"""Event sequences: the chain of events of an item, how an event continues it, and a bound on folding chains again."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec

from rstore.core.bounds import UnfoldableEvent
from rstore.core.encodings import Encoding, InvalidJSON, check_numbers, parse_json, render_json
from rstore.core.folding import present_after
from rstore.core.numeric import INT64_MIN
from rstore.core.operators import ASSIGNING, JsonValue, apply_json
from rstored.backends.abc import Place, Query, Row, Slice
from rstored.engine.es.rows import LONG_BYTES, ItemRow, event_size, item_scan, paged, stored_event
from rstored.engine.model import StoredEvent
from rstored.problems import of_storage


class Chain(NamedTuple):
    """A chain that is being followed: its row, and its folded value if ``row.data`` is not yet the text of it."""

    row: ItemRow
    json: JsonValue | None = None

    @classmethod
    def begun(cls, event: StoredEvent) -> Chain:
        """The chain that a setitem begins."""
        assert event.value is not None
        t, (encoding, data) = event.timestamp, event.value
        return cls(ItemRow(t, t, 1, event_size(event), encoding is Encoding.JSON, encoding, data))

    def extended(self, event: StoredEvent, bytes_max: int | None) -> Chain:
        """The chain with one more event, whose operator neither begins nor ends a chain. Raises UnfoldableEvent.

        The text of the folded value may have ``bytes_max`` bytes. If that is None, the chain is not folded, and only a
        client can fold the result.
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
    """How much an apply in the past may still fold again. It is bounded because all other writers wait meanwhile."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._left = events_max

    def spend(self, chain: Chain | None = None) -> None:
        """Count an event, several times if its chain has a long value. Raises UnfoldableEvent when nothing is left."""
        self._left -= 1 if chain is None or chain.json is None else 1 + chain.json.size // LONG_BYTES
        if self._left < 0:
            raise UnfoldableEvent(
                f"more than {self._events_max} events would have to be folded again (fewer if their values are long):"
                " apply it at a later timestamp, or without one"
            )


class NeedsClient(Exception):
    """Nobody has checked an event that would continue a chain which only a client can fold."""


def followed(chain: Chain | None, event: StoredEvent, bytes_max: int, *, checked: bool = True) -> Chain | None:
    """The chain of the item after an event; None if the item is absent then.

    Raises UnfoldableEvent (see :meth:`Chain.extended`). Raises NeedsClient if only a client can fold the chain, and no
    client has ``checked`` the event.
    """
    if not present_after(event.op, chain is not None):
        return None
    if chain is None or event.op == "setitem":
        return Chain.begun(event)
    longer = chain.extended(event, bytes_max)
    if not (checked or longer.row.plain):
        raise NeedsClient
    return longer


def chain_start(place: Place, item: str, t: int, refolding: Refolding) -> Generator[Query, list[Any], int | None]:
    """The timestamp of the setitem that begins the chain at ``t``; None if the item is absent then."""
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
    """The JSON value, as an operator computes with it. Raises UnfoldableEvent."""
    value = JsonValue.of(_parsed(data))
    try:
        check_numbers(data)
    except InvalidJSON as error:
        raise UnfoldableEvent(f"operators compute with doubles, and {error}") from None
    return value


@of_storage("the value of an event or item")
def _parsed(data: bytes) -> Any:
    # The service checked the value when it stored it, perhaps with another limit on nesting.
    return parse_json(data, nesting_max=sys.maxsize)
