"""``/kv``: key/value pairs. Bodies are the values themselves. Listings and batches are JSON or msgpack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from msgspec import UNSET, UnsetType

from rstore.core.encodings import Encoding, InvalidJSON, Value, encoding_of, media_type_of, parse_json
from rstore.core.media_types import JSON_MEDIA_TYPE, OCTET_STREAM, SEALED_MEDIA_TYPE
from rstored.api.access import Rule
from rstored.api.answers import answer_sized
from rstored.api.bodies import body_form, read_body
from rstored.api.conditions import (
    IDEMPOTENCY_HEADER,
    IF_HEADERS,
    bare_condition,
    condition_of,
    etag_header,
    not_modified,
    write_id_of,
)
from rstored.api.media_types import form_refused, parse_content_type
from rstored.api.operations import Answer, Content, Operations, json_content
from rstored.api.parameters import checked_key, page_size, read_cursor, write_cursor
from rstored.api.replies import NO_CONTENT, Header, Reply, content_type
from rstored.api.requests import Request
from rstored.api.shapes.kv import (
    DeletePart,
    KeyBatch,
    KeyBatchResult,
    KeyItem,
    KeyList,
    KeyListQuery,
    KeySet,
    PutQuery,
    SetPart,
)
from rstored.api.values import read_value, wire_value
from rstored.engine.model import ANY, KEEP, Access, BatchDelete, BatchGet, BatchSet, Entry, Expiry
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized

operations: Final = Operations("kv", "Key/value pairs with ETags, conditional writes and expiry.")

T = TypeVar("T")
PartT = TypeVar("PartT")

# A value may be anything, even a web page. A browser may not let it act as a page of the service.
_KEPT_APART: Final[tuple[Header, ...]] = ((b"content-security-policy", b"sandbox"),)
_VALUE_EXAMPLES: Final = {
    JSON_MEDIA_TYPE: Content(None, {"name": "Ada", "age": 36}),
    OCTET_STREAM: Content(None, "any bytes, under any media type"),
    SEALED_MEDIA_TYPE: Content(None, "an envelope that only the client can open"),
}
_OTHER_VALUE: Final = {"*/*": Content(None, "what was written under another media type")}
_ITEM: Final[dict[str, Any]] = {
    "key": "user:1",
    "media_type": JSON_MEDIA_TYPE,
    "etag": "6f1ed002ab559585",
    "expires": None,
}
_ENTRY_HEADERS: Final = {
    "ETag": "a strong tag: a hash of media type and content",
    "Rstore-Expires": "when the key expires, in POSIX milliseconds; absent if it does not",
}


@operations.add(
    "HEAD",
    "/kv/{key}",
    summary="Tell whether a key exists",
    answers={
        200: Answer("The key exists; the headers are those of GET", headers=_ENTRY_HEADERS),
        304: Answer("The ETag is one of those in If-None-Match"),
    },
    problems=("key-not-found", "precondition-failed", "invalid-parameter", "backend-unavailable"),
    headers=IF_HEADERS,
)
@operations.add(
    "GET",
    "/kv/{key}",
    summary="Read a value",
    answers={
        200: Answer("The value, as it was written", _VALUE_EXAMPLES | _OTHER_VALUE, _ENTRY_HEADERS),
        304: Answer("The ETag is one of those in If-None-Match"),
    },
    problems=("key-not-found", "precondition-failed", "invalid-parameter", "backend-unavailable"),
    headers=IF_HEADERS,
)
async def get(request: Request) -> Reply:
    """The body is the value itself. It has the media type that it was written with, whatever Accept says."""
    entry = await request.engine.kv.get(request.namespace, request.key)
    if entry is None:
        raise Problem("key-not-found", "there is no such key in this namespace")
    headers = _entry_headers(entry)
    condition = condition_of(request)
    if condition is not ANY and not_modified(condition, entry.etag):
        return Reply(304, headers)
    return Reply(200, (content_type(entry.media_type), *headers, *_KEPT_APART), entry.value.data)


@operations.add(
    "PUT",
    "/kv/{key}",
    summary="Write a value",
    answers={
        201: Answer("The key is new", headers={"ETag": _ENTRY_HEADERS["ETag"]}),
        204: Answer("The value is replaced", headers={"ETag": _ENTRY_HEADERS["ETag"]}),
    },
    problems=(
        "precondition-failed",
        "invalid-value",
        "nesting-too-deep",
        "value-too-large",
        "sealed-only",
        "backend-unavailable",
        "storage-full",
    ),
    body=_VALUE_EXAMPLES,
    body_required=False,
    headers=IF_HEADERS | IDEMPOTENCY_HEADER,
)
async def put(request: Request, query: PutQuery) -> Reply:
    """The body is the value, of the type in Content-Type, by default `application/octet-stream`. Without a body the
    value is empty. Forms are refused.

    The service checks that JSON parses.
    """
    sent = request.content_type
    if sent is not None and sent.is_form:
        raise await _form_refused(request)
    media_type = OCTET_STREAM if sent is None else _stored_media_type(sent.essence, sent.text)
    condition = condition_of(request)
    data = await request.body(request.state.limits.value_bytes_max, "value-too-large")
    result = await request.engine.kv.put(
        request.namespace,
        request.key,
        value=Value(encoding_of(media_type), data),
        media_type=media_type,
        ttl_seconds=_expiry(query.ttl),
        condition=condition,
        write_id=write_id_of(request),
    )
    return Reply(201 if result.created else 204, (etag_header(result.etag),))


@operations.add(
    "DELETE",
    "/kv/{key}",
    summary="Delete a key",
    answers={204: Answer("The key does not exist any more")},
    problems=("precondition-failed", "invalid-parameter", "backend-unavailable"),
    headers=IF_HEADERS | IDEMPOTENCY_HEADER,
)
async def delete(request: Request) -> Reply:
    """Also succeeds if the key does not exist, except with `If-Match`."""
    await request.engine.kv.delete(
        request.namespace, request.key, condition=condition_of(request), write_id=write_id_of(request)
    )
    return NO_CONTENT


@operations.add(
    "GET",
    "/kv",
    summary="List keys",
    answers={200: Answer("A page of pairs", json_content(KeyList, {"items": [_ITEM], "cursor": "dXNlcjox"}))},
    problems=("backend-unavailable",),
)
async def list_keys(request: Request, query: KeyListQuery) -> Reply:
    """Pairs in key order. Send the `cursor` of one page to get the next; it is null on the last page. A page may be
    short, or empty, and still have a cursor, because the service does not search without bound for one page."""
    page = await request.engine.kv.list(
        request.namespace,
        match=query.match,
        prefix=query.prefix,
        after=read_cursor(query.cursor),
        limit=page_size(query, request.state.limits),
        values=query.values,
    )

    def body(form: str) -> KeyList:
        items = [_item(key, entry, form, values=query.values) for key, entry in page.items]
        return KeyList(items, write_cursor(page.cursor))

    return await answer_sized(request, _size(page.items), body)


@operations.add(
    "POST",
    "/kv",
    summary="Read and write many keys at once",
    answers={
        200: Answer(
            "Every part was carried out",
            json_content(
                KeyBatchResult,
                {
                    "get": [{**_ITEM, "value": {"name": "Ada"}}],
                    "set": [{"key": "user:2", "etag": "b1946ac92492d234", "created": True}],
                    "delete": [],
                },
            ),
        )
    },
    problems=(
        "precondition-failed",
        "invalid-key",
        "answer-too-large",
        "invalid-value",
        "value-too-large",
        "batch-too-large",
        "sealed-only",
        "backend-unavailable",
        "storage-full",
    ),
    body=json_content(
        KeyBatch,
        {
            "get": ["user:1"],
            "set": [{"key": "user:2", "value": {"name": "Grace"}, "ttl": 3600, "if_none_match": "*"}],
            "delete": ["user:3", {"key": "user:4", "if_match": "6f1ed002ab559585"}],
        },
    ),
    headers=IDEMPOTENCY_HEADER,
    rule=Rule(Access.READ),
)
async def batch(request: Request) -> Reply:
    """One atomic batch: either all of it happens or nothing. The gets see the values from before the batch.

    If a part fails, the problem's `pointer` names it (`/set/3`). A batch may write a key only once. A batch that has
    only gets needs read access, and any other batch needs write access.
    """
    body = await read_body(request, KeyBatch)
    request.engine.kv.check_count(len(body.get) + len(body.set) + len(body.delete))
    if body.set or body.delete:
        request.require(Access.WRITE)
    limits = request.state.limits
    sets_form = body_form(request)

    def sets() -> list[BatchSet]:
        return _parts(body.set, "/set", lambda part: _set_part(part, sets_form, limits))

    result = await request.engine.kv.batch(
        request.namespace,
        gets=_parts(body.get, "/get", lambda key: BatchGet(checked_key(key, limits, pointer=""))),
        sets=await run_sized(sum(memoryview(part.value).nbytes for part in body.set), sets),
        deletes=_parts(body.delete, "/delete", lambda part: _delete_part(part, limits)),
        write_id=write_id_of(request),
    )

    def answered(form: str) -> KeyBatchResult:
        return KeyBatchResult(
            [_item(key, entry, form, values=True) for key, entry in result.entries],
            [KeySet(key, put.etag, put.created) for key, put in result.puts],
            result.deleted,
        )

    return await answer_sized(request, _size(result.entries), answered)


def _entry_headers(entry: Entry) -> tuple[Header, ...]:
    if entry.expires_ms is None:
        return (etag_header(entry.etag),)
    return (etag_header(entry.etag), (b"rstore-expires", b"%d" % entry.expires_ms))


async def _form_refused(request: Request) -> Problem:
    """The problem of a value with the media type of a form. It says which header to send instead."""
    limits = request.state.limits
    data = await request.body(limits.value_bytes_max, "value-too-large")
    try:
        await run_sized(len(data), functools.partial(parse_json, data, nesting_max=limits.nesting_max))
    except InvalidJSON:
        return form_refused(f"-H 'Content-Type: {OCTET_STREAM}' (or what the value is), and --data-binary for -d")
    return form_refused(f"-H 'Content-Type: {JSON_MEDIA_TYPE}', because the body is JSON")


def _expiry(ttl: float | str | UnsetType | None) -> float | Expiry:
    if isinstance(ttl, str):
        return Expiry.NEVER
    return KEEP if ttl is None or ttl is UNSET else ttl


def _stored_media_type(essence: str, text: str) -> str:
    """The media type to store. It has no parameters for our own encodings, and keeps them for all other types."""
    return essence if encoding_of(essence) is not Encoding.BYTES else text


def _size(entries: Sequence[tuple[str, Entry]]) -> int:
    return sum(len(entry.value.data) for _, entry in entries)


def _item(key: str, entry: Entry, form: str, *, values: bool) -> KeyItem:
    if not values:
        return KeyItem(key, entry.media_type, entry.etag, entry.expires_ms)
    raw, encoding = wire_value(entry.value, form)
    return KeyItem(key, entry.media_type, entry.etag, entry.expires_ms, raw, encoding)


def _parts(bodies: Sequence[T], pointer: str, part_of: Callable[[T], PartT]) -> list[PartT]:
    """What each part asks for. A problem gets the pointer from the whole body."""
    parts: list[PartT] = []
    try:
        for body in bodies:
            parts.append(part_of(body))  # noqa: PERF401 (how many there are says which one fails)
    except Problem as problem:
        within = problem.members.pop("pointer", "")
        raise Problem(
            problem.code, problem.detail, pointer=f"{pointer}/{len(parts)}{within}", **problem.members
        ) from None
    return parts


def _set_part(part: SetPart, form: str, limits: Limits) -> BatchSet:
    value = read_value(part.value, part.encoding, form, limits, "/value")
    media_type = media_type_of(value.encoding)
    if part.media_type is not UNSET:
        try:
            sent = parse_content_type(part.media_type)
        except Problem as problem:
            raise Problem("invalid-body", problem.detail, pointer="/media_type") from None
        if sent.is_form:
            raise Problem(
                "invalid-body", "a value has the media type of what it is, not of a form", pointer="/media_type"
            )
        media_type = _stored_media_type(sent.essence, sent.text)
        if encoding_of(media_type) is not value.encoding:
            detail = f"the media type is not one of the encoding {part.encoding}"
            raise Problem("invalid-body", detail, pointer="/media_type")
    return BatchSet(
        checked_key(part.key, limits, pointer="/key"),
        value,
        media_type,
        _expiry(part.ttl),
        bare_condition(part.if_match, part.if_none_match),
    )


def _delete_part(part: str | DeletePart, limits: Limits) -> BatchDelete:
    if isinstance(part, str):
        return BatchDelete(checked_key(part, limits, pointer=""))
    return BatchDelete(checked_key(part.key, limits, pointer="/key"), bare_condition(part.if_match, None))
