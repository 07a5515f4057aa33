"""``/es``: event sequences."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from rstore.core.encodings import on_one_line
from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, NDJSON_MEDIA_TYPE
from rstore.core.operators import UNARY
from rstored.api.answers import MsgpackArray, answer, answer_sized, encode_body
from rstored.api.bodies import body_form, read_body, read_optional_body
from rstored.api.conditions import IDEMPOTENCY_HEADER, write_id_of
from rstored.api.operations import Answer, Content, Operations, json_content
from rstored.api.parameters import ListQuery, checked_key, page_size, read_cursor, write_cursor
from rstored.api.replies import Reply, content_type
from rstored.api.requests import Request
from rstored.api.shapes.es import (
    Apply,
    EventBody,
    EventList,
    EventPart,
    EventsQuery,
    OpName,
    PastQuery,
    Prune,
    Pruned,
    RemovedEvents,
    ResealBody,
    Resealed,
    ResealPart,
    SequenceItem,
    SequenceList,
    StateBody,
)
from rstored.api.streams import closed
from rstored.api.values import read_value, wire_value
from rstored.engine.model import Change, Reseal, State, StoredEvent
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized

operations: Final = Operations("es", "Event sequences: dicts that keep every change as an event.")

_EVENT: Final[dict[str, Any]] = {"timestamp": 1700000000000, "item": "apples", "op": "add", "value": 3}
_STATE: Final[dict[str, Any]] = {"timestamp": 1700000000000, "revision": 2, "state": {"apples": 8}, "events": []}
# Rendering an item or an event takes as long as this many bytes of its value.
_EVENT_COST_BYTES: Final = 64


@operations.add(
    "GET",
    "/es/{key}/events",
    summary="Read events",
    answers={
        200: Answer(
            "The events",
            {
                **json_content(EventList, {"events": [_EVENT]}),
                NDJSON_MEDIA_TYPE: Content(None, '{"timestamp":1700000000000,"item":"apples","op":"add","value":3}\n'),
            },
        )
    },
    problems=("sequence-not-found", "answer-too-large", "backend-unavailable"),
)
async def events(request: Request, query: EventsQuery) -> Reply:
    """The events in order of timestamp, then item. JSON and NDJSON are streamed; msgpack is limited by
    `answer_points_max` and `body_bytes_max`."""
    if query.item is not None:
        checked_key(query.item, request.state.limits, "item", parameter="item")
    ops = None if query.ops is None else _operators(query.ops)
    parts = await request.engine.es.events(
        request.namespace, request.key, start=query.start, end=query.end, ops=ops, item=query.item, n=query.n
    )
    if parts is None:
        raise _not_found()
    if request.form == MSGPACK_MEDIA_TYPE:
        return Reply(200, (content_type(request.form),), await _whole(request, parts))
    headers = (content_type(request.form),)
    return Reply(200, headers, _rendered(parts, lines=request.form == NDJSON_MEDIA_TYPE))


@operations.add(
    "POST",
    "/es/{key}/events",
    summary="Apply events",
    answers={
        200: Answer(
            "The new state",
            json_content(StateBody, _STATE),
        )
    },
    problems=(
        "timestamp-taken",
        "unfoldable-event",
        "revision-conflict",
        "sealing-mismatch",
        "invalid-value",
        "value-too-large",
        "batch-too-large",
        "sealed-only",
        "sequence-not-found",
        "backend-unavailable",
        "storage-full",
    ),
    body=json_content(Apply, {"events": [{"item": "apples", "op": "add", "value": 3}]}),
    headers=IDEMPOTENCY_HEADER,
)
async def apply(request: Request) -> Reply:
    """Record events at one timestamp, all or none. If one of them cannot be folded, all are refused.

    Without events nothing is recorded, and the answer is that of `current`.
    """
    body = await read_body(request, Apply)
    request.engine.es.check_count(len(body.events))
    form = body_form(request)
    limits = request.state.limits

    def changes() -> list[Change]:
        return [_change(event, form, limits, f"/events/{i}") for i, event in enumerate(body.events)]

    state = await request.engine.es.apply(
        request.namespace,
        request.key,
        await run_sized(sum(memoryview(event.value).nbytes for event in body.events), changes),
        timestamp=body.timestamp,
        revision=body.revision,
        write_id=write_id_of(request),
    )
    return await _state_reply(request, state)


@operations.add(
    "DELETE",
    "/es/{key}/events",
    summary="Delete a sequence",
    answers={200: Answer("The sequence does not exist any more", json_content(RemovedEvents, {"removed": 12}))},
    problems=("backend-unavailable",),
    headers=IDEMPOTENCY_HEADER,
)
async def delete(request: Request) -> Reply:
    """Delete all events of the sequence, and its revision."""
    removed = await request.engine.es.delete(request.namespace, request.key, write_id=write_id_of(request))
    return answer(request, RemovedEvents(removed))


@operations.add(
    "GET",
    "/es/{key}/current",
    summary="Read the current state",
    answers={200: Answer("The state", json_content(StateBody, _STATE))},
    problems=("sequence-not-found", "backend-unavailable"),
)
async def current(request: Request) -> Reply:
    """The current state. The cost depends on the size of the state, not on the length of the history."""
    return await _state_reply(request, await request.engine.es.current(request.namespace, request.key))


@operations.add(
    "GET",
    "/es/{key}/past",
    summary="Read a past state",
    answers={200: Answer("The state at that time", json_content(StateBody, _STATE))},
    problems=("sequence-not-found", "backend-unavailable"),
)
async def past(request: Request, query: PastQuery) -> Reply:
    """The state as it was after the last event at or before `t`."""
    return await _state_reply(request, await request.engine.es.past(request.namespace, request.key, query.t))


@operations.add(
    "POST",
    "/es/{key}/prune",
    summary="Delete events that no longer matter",
    answers={200: Answer("The events are deleted", json_content(Pruned, {"pruned": 9, "removed": False}))},
    problems=("backend-unavailable",),
    body=json_content(Prune, {"remove": True}),
    body_required=False,
    headers=IDEMPOTENCY_HEADER,
)
async def prune(request: Request) -> Reply:
    """Delete the events that the current state no longer needs: those before the last setitem or delitem of their item.
    Sealed events are deleted too."""
    body = await read_optional_body(request, Prune)
    remove = True if body is None else body.remove
    result = await request.engine.es.prune(request.namespace, request.key, remove=remove, write_id=write_id_of(request))
    return answer(request, Pruned(result.pruned, result.removed))


@operations.add(
    "POST",
    "/es/{key}/reseal",
    summary="Replace sealed values by sealed values",
    answers={200: Answer("The events have the new values", json_content(Resealed, {"resealed": 1}))},
    problems=(
        "sequence-not-found",
        "precondition-failed",
        "invalid-value",
        "value-too-large",
        "batch-too-large",
        "backend-unavailable",
        "storage-full",
    ),
    body=json_content(
        ResealBody,
        {
            "events": [
                {
                    "timestamp": 1700000000000,
                    "item": "apples",
                    "op": "add",
                    "replaces": "5f78c33274e43fa9de5659265c1d917e25c03722dcb0b8d27db8d5feaa813953",
                    "value": "3q2+7w==",
                }
            ]
        },
    ),
    headers=IDEMPOTENCY_HEADER,
)
async def reseal(request: Request) -> Reply:
    """Clients use this to change a key. Only the bytes of the values change, and the revision stays the same.

    If an event no longer exists, or has another value than the one that `replaces` names, the answer is 412 with a
    `pointer` to the event, and no value changes.
    """
    body = await read_body(request, ResealBody)
    request.engine.es.check_count(len(body.events))
    form = body_form(request)
    limits = request.state.limits

    def reseals() -> list[Reseal]:
        return [_reseal(part, form, limits, f"/events/{i}") for i, part in enumerate(body.events)]

    size = sum(memoryview(part.value).nbytes for part in body.events)
    await request.engine.es.reseal(
        request.namespace, request.key, await run_sized(size, reseals), write_id=write_id_of(request)
    )
    return answer(request, Resealed(len(body.events)))


@operations.add(
    "GET",
    "/es",
    summary="List sequences",
    answers={
        200: Answer(
            "A page of sequences",
            json_content(
                SequenceList,
                {
                    "items": [{"key": "stock", "events": 12, "revision": 9, "last": 1700000000000, "items": 3}],
                    "cursor": None,
                },
            ),
        )
    },
    problems=("backend-unavailable",),
)
async def list_sequences(request: Request, query: ListQuery) -> Reply:
    """Sequences in key order. Send the `cursor` of one page to get the next; it is null on the last page."""
    page = await request.engine.es.list(
        request.namespace,
        match=query.match,
        prefix=query.prefix,
        after=read_cursor(query.cursor),
        limit=page_size(query, request.state.limits),
    )
    items = [SequenceItem(info.key, info.events, info.revision, info.last, info.items) for info in page.items]
    return answer(request, SequenceList(items, write_cursor(page.cursor)))


def _operators(text: str) -> frozenset[str]:
    names = frozenset(filter(None, text.split(",")))
    known = frozenset(OpName.__args__)  # type: ignore[attr-defined]
    if not names <= known:
        raise Problem("invalid-parameter", f"ops: the operators are {', '.join(sorted(known))}", parameter="ops")
    return names


async def _rendered(parts: AsyncIterator[list[StoredEvent]], *, lines: bool) -> AsyncGenerator[bytes, None]:
    encoder = msgspec.json.Encoder()
    opening = waiting = b'{"events":['
    async with closed(parts):
        async for part in parts:
            bodies = [_event_body(event, JSON_MEDIA_TYPE) for event in part]
            if lines:
                yield encoder.encode_lines([_on_one_line(body) for body in bodies])
            elif bodies:
                yield waiting + encoder.encode(bodies)[1:-1]
                waiting = b","
    if not lines:
        yield (opening if waiting == opening else b"") + b"]}"


def _on_one_line(body: EventBody) -> EventBody:
    """The event with its value on one line."""
    body.value = Raw(on_one_line(bytes(body.value)))
    return body


async def _whole(request: Request, parts: AsyncIterator[list[StoredEvent]]) -> bytes:
    """The msgpack body. It cannot be streamed, because it begins with the number of events."""
    array = MsgpackArray("events", request)
    async with closed(parts):
        async for part in parts:
            array.extend([_event_body(event, MSGPACK_MEDIA_TYPE) for event in part])
    return array.body()


def _change(event: EventPart, form: str, limits: Limits, pointer: str) -> Change:
    item = checked_key(event.item, limits, "item", pointer=f"{pointer}/item")
    text = bytes(event.value)
    if not text or (event.op in UNARY and event.encoding == "json" and text == encode_body(None, form)):
        return Change(item, event.op, None)
    return Change(item, event.op, read_value(event.value, event.encoding, form, limits, f"{pointer}/value"))


async def _state_reply(request: Request, state: State | None) -> Reply:
    if state is None:
        raise _not_found()
    size = sum(_EVENT_COST_BYTES + len(value.data) for value in state.items.values())
    size += sum(_EVENT_COST_BYTES + len(event.value.data) for event in state.events if event.value is not None)
    return await answer_sized(request, size, lambda form: _state_body(state, form))


def _not_found() -> Problem:
    return Problem("sequence-not-found", "there is no such sequence in this namespace, or it had no event at that time")


def _state_body(state: State, form: str) -> StateBody:
    # The items in `state` need no encoding, because the service folds only JSON.
    items = {item: wire_value(value, form)[0] for item, value in state.items.items()}
    return StateBody(state.timestamp, state.revision, items, [_event_body(event, form) for event in state.events])


def _event_body(event: StoredEvent, form: str) -> EventBody:
    if event.value is None:
        return EventBody(event.timestamp, event.item, event.op, Raw(encode_body(None, form)))  # type: ignore[arg-type]
    raw, encoding = wire_value(event.value, form)
    return EventBody(event.timestamp, event.item, event.op, raw, encoding)  # type: ignore[arg-type]


def _reseal(part: ResealPart, form: str, limits: Limits, pointer: str) -> Reseal:
    item = checked_key(part.item, limits, "item", pointer=f"{pointer}/item")
    value = read_value(part.value, "sealed", form, limits, f"{pointer}/value")
    return Reseal(part.timestamp, item, part.op, part.replaces, value)
