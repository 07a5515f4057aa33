"""The calls for event sequences."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from rstore.calls.answers import json_body, malformed, problem_code
from rstore.calls.call import Answer, Call, whole
from rstore.calls.listings import Page, key_list, size_list
from rstore.calls.requests import ACCEPT_JSON, JSON_BODY, once, query_string, target_of, value_members
from rstore.calls.shapes import Int64, NameText, NonNegative, value_in
from rstore.core.encodings import Encoding, Value
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATORS, UNARY

_ITEM_BYTES: Final = 200
_EVENT_BYTES: Final = 560
_NULL: Final = msgspec.Raw(b"null")


class StoredEvent(NamedTuple):
    """An event as the service has it. ``op`` is the operator's name. The value of a unary one is None, or sealed."""

    timestamp: int
    item: str
    op: str
    value: Value | None


class StoredState(NamedTuple):
    """The state of a sequence as the service has it.

    ``items`` are the values that the service folded. ``events`` are, in order, the events of the items that only a
    client can fold. No item is in both.
    """

    timestamp: int
    revision: int
    items: dict[str, Value]
    events: list[StoredEvent]


class _EventShape(msgspec.Struct):
    timestamp: Int64
    item: NameText
    op: str
    value: msgspec.Raw = _NULL
    encoding: str = "json"

    def event(self) -> StoredEvent:
        if self.op not in OPERATORS:
            malformed("an event has an unknown operator")
        if self.op not in UNARY or self.encoding == "sealed":
            return StoredEvent(self.timestamp, self.item, self.op, value_in(self.value, self.encoding))
        if self.encoding != "json" or bytes(self.value) != b"null":
            malformed("an event of a unary operator has a value")
        return StoredEvent(self.timestamp, self.item, self.op, None)


class _NewEventShape(msgspec.Struct):
    item: str
    op: str
    value: msgspec.Raw | str | msgspec.UnsetType = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.UNSET


class _StateShape(msgspec.Struct):
    timestamp: Int64
    revision: NonNegative
    state: dict[NameText, msgspec.Raw] = {}
    events: list[_EventShape] = []


class _EventsShape(msgspec.Struct):
    events: list[_EventShape]


class _ResealedShape(msgspec.Struct):
    resealed: NonNegative


class _PrunedShape(msgspec.Struct):
    pruned: NonNegative
    removed: bool


_STATE: Final = msgspec.json.Decoder(_StateShape)
_EVENTS: Final = msgspec.json.Decoder(_EventsShape)
_RESEALED: Final = msgspec.json.Decoder(_ResealedShape)
_PRUNED: Final = msgspec.json.Decoder(_PrunedShape)


def list_keys(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys of the sequences."""
    return key_list(namespace, "es", cursor)


def list_sizes(namespace: str, cursor: str | None = None) -> Call[Page[tuple[str, int]]]:
    """One page of the keys of the sequences, each with its number of events."""
    return size_list(namespace, "es", cursor)


def current(namespace: str, key: str) -> Call[StoredState | None]:
    """The current state, or None if the sequence does not exist."""

    def decode(answer: Answer) -> StoredState | None:
        return None if problem_code(answer, 404) == "sequence-not-found" else _state(answer)

    return Call("GET", target_of(namespace, "es", key, "current"), whole(decode), ACCEPT_JSON)


def past(namespace: str, key: str, t: int) -> Call[StoredState | None]:
    """The state as of ``t``, or None if there was no event until then."""

    def decode(answer: Answer) -> StoredState | None:
        return None if problem_code(answer, 404) == "sequence-not-found" else _state(answer, until=t)

    return Call("GET", target_of(namespace, "es", key, "past", query_string(t=t)), whole(decode), ACCEPT_JSON)


def events(
    namespace: str,
    key: str,
    *,
    start: int | None = None,
    end: int | None = None,
    ops: Iterable[str] | None = None,
    item: str | None = None,
    n: int | None = None,
) -> Call[list[StoredEvent] | None]:
    """The first ``n`` events from ``start`` to ``end`` of these operators and this item.

    None if there is no such sequence.
    """
    names = None if ops is None else frozenset(ops)
    low = INT64_MIN if start is None else start
    high = INT64_MAX if end is None else end

    def decode(answer: Answer) -> list[StoredEvent] | None:
        if problem_code(answer, 404) == "sequence-not-found":
            return None
        most = {} if n is None else {"events": n}
        events = _in_order(answer, json_body(answer, _EVENTS, 200, **most).events)
        if events and not (low <= events[0].timestamp and events[-1].timestamp <= high):
            malformed("there are events outside the range asked for", answer.head)
        if any((names is not None and e.op not in names) or (item is not None and e.item != item) for e in events):
            malformed("there are other events than were asked for", answer.head)
        return events

    query = query_string(start=start, end=end, ops=None if names is None else ",".join(sorted(names)), item=item, n=n)
    return Call("GET", target_of(namespace, "es", key, "events", query), whole(decode), ACCEPT_JSON)


def apply(
    namespace: str,
    key: str,
    changes: Iterable[tuple[str, str, Value | None]],
    *,
    timestamp: int | None = None,
    revision: int | None = None,
) -> Call[StoredState]:
    """Apply events, each ``(item, operator name, value)``, at one timestamp. The answer is the new state."""
    body: dict[str, Any] = {
        "events": [
            _NewEventShape(item, op) if value is None else _NewEventShape(item, op, *value_members(value))
            for item, op, value in changes
        ]
    }
    if timestamp is not None:
        body["timestamp"] = timestamp
    if revision is not None:
        body["revision"] = revision
    target = target_of(namespace, "es", key, "events")
    return Call("POST", target, whole(_state), JSON_BODY + once(), msgspec.json.encode(body))


def prune(namespace: str, key: str, *, remove: bool) -> Call[None]:
    """Delete the events that the current state no longer needs."""

    def decode(answer: Answer) -> None:
        json_body(answer, _PRUNED, 200)

    body = msgspec.json.encode({"remove": remove})
    return Call("POST", target_of(namespace, "es", key, "prune"), whole(decode), JSON_BODY + once(), body)


def reseal(namespace: str, key: str, reseals: Iterable[tuple[int, str, str, Value, Value]]) -> Call[int]:
    """Replace sealed values: ``(timestamp, item, operator name, present value, new value)``. The answer is how many."""
    events = [
        {
            "timestamp": t,
            "item": item,
            "op": op,
            "replaces": hashlib.sha256(present.data).hexdigest(),
            "value": base64.b64encode(new.data).decode("ascii"),
        }
        for t, item, op, present, new in reseals
    ]
    target = target_of(namespace, "es", key, "reseal")
    body = msgspec.json.encode({"events": events})
    headers = JSON_BODY + once()
    return Call("POST", target, whole(lambda answer: json_body(answer, _RESEALED, 200).resealed), headers, body)


def _state(answer: Answer, *, until: int = INT64_MAX) -> StoredState:
    found = json_body(answer, _STATE, 200)
    answer.spend(sum(_ITEM_BYTES + sys.getsizeof(item) + len(raw) for item, raw in found.state.items()))
    items = {item: Value(Encoding.JSON, bytes(raw)) for item, raw in found.state.items()}
    events = _in_order(answer, found.events)
    if found.timestamp > until or (events and events[-1].timestamp > found.timestamp):
        malformed("the state includes later events than it says", answer.head)
    if not items.keys().isdisjoint(event.item for event in events):
        malformed("an item has both a value and events", answer.head)
    return StoredState(found.timestamp, found.revision, items, events)


def _in_order(answer: Answer, found: list[_EventShape]) -> list[StoredEvent]:
    """The events, counted. Their order must be that of timestamp, then item, and none may come twice."""
    answer.spend(sum(_EVENT_BYTES + sys.getsizeof(event.item) + len(event.value) for event in found))
    events = [event.event() for event in found]
    places = [(event.timestamp, event.item) for event in events]
    if not all(map(tuple.__lt__, places, places[1:])):
        malformed("events are out of order", answer.head)
    return events
