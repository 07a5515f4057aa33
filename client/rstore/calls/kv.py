"""The calls for key/value pairs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from rstore.calls.answers import bare_media_type, json_body, malformed, no_body, problem_code, refusal
from rstore.calls.call import Answer, Call, whole
from rstore.calls.etags import bare_etag, condition
from rstore.calls.listings import Page, PageShape, key_list, page_shape
from rstore.calls.requests import ACCEPT_JSON, JSON_BODY, once, query_string, target_of, value_members
from rstore.calls.shapes import Int64, NameText, value_in
from rstore.core.encodings import Value, encoding_of, media_type_of
from rstore.core.globs import compile_glob

_ENTRY_BYTES: Final = 600
_EXPIRES: Final = re.compile(r"-?[0-9]{1,19}\Z")


class StoredEntry(NamedTuple):
    """A pair as the service has it. ``etag`` has no quotes. ``expires_ms`` is POSIX milliseconds, or None."""

    value: Value
    etag: str
    expires_ms: int | None


class Batch(NamedTuple):
    """The answer to a batch: the entries of the keys that are there, and the ETag of each set."""

    entries: list[tuple[str, StoredEntry]]
    etags: dict[str, str]


class _EntryShape(msgspec.Struct):
    key: NameText
    etag: str
    value: msgspec.Raw
    encoding: str = "json"
    expires: Int64 | None = None


class _PutShape(msgspec.Struct):
    key: NameText
    etag: str


class _SetShape(msgspec.Struct):
    key: str
    value: msgspec.Raw | str
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    ttl: str | float | msgspec.UnsetType = msgspec.UNSET
    if_match: str | msgspec.UnsetType = msgspec.UNSET


class _BatchShape(msgspec.Struct):
    get: list[_EntryShape] = []
    set: list[_PutShape] = []


_ENTRY_PAGE: Final = msgspec.json.Decoder(PageShape[_EntryShape])
_BATCH: Final = msgspec.json.Decoder(_BatchShape)


def list_keys(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys."""
    return key_list(namespace, "kv", cursor)


def find(namespace: str, match: str | None, cursor: str | None = None) -> Call[Page[tuple[str, StoredEntry]]]:
    """One page of the pairs whose key matches the glob."""

    def decode(answer: Answer) -> Page[tuple[str, StoredEntry]]:
        page = page_shape(answer, _ENTRY_PAGE)
        if match is not None and not all(map(compile_glob(match).matches, [item.key for item in page.items])):
            malformed("there are other keys than were asked for", answer.head)
        return Page(_entries(answer, page.items), page.cursor)

    query = query_string(match=match, values="true", cursor=cursor)
    return Call("GET", target_of(namespace, "kv", query=query), whole(decode), ACCEPT_JSON)


def get(namespace: str, key: str) -> Call[StoredEntry | None]:
    """The pair, or None if the key is not there."""
    return Call("GET", target_of(namespace, "kv", key), whole(_entry))


def has(namespace: str, key: str) -> Call[bool]:
    """Whether the key is there. The service does not send its value."""

    def decode(answer: Answer) -> bool:
        # An answer to HEAD has no body, so its status is all there is.
        if answer.head.status not in (200, 404):
            raise refusal(answer)
        return answer.head.status == 200

    return Call("HEAD", target_of(namespace, "kv", key), whole(decode))


def put(
    namespace: str,
    key: str,
    value: Value,
    *,
    ttl: str | float | None = None,
    if_match: str | None = None,
    if_absent: bool = False,
) -> Call[str]:
    """Store the value. The answer is its ETag. ``ttl`` is seconds, ``"never"``, or None to keep the expiry."""
    headers = ((b"content-type", media_type_of(value.encoding).encode()), *once())
    if if_match is not None:
        headers += ((b"if-match", condition(if_match).encode()),)
    if if_absent:
        headers += ((b"if-none-match", b"*"),)
    return Call(
        "PUT", target_of(namespace, "kv", key, query=query_string(ttl=ttl)), whole(_put_etag), headers, value.data
    )


def delete(namespace: str, key: str) -> Call[None]:
    """Delete the key if it is there."""
    return Call("DELETE", target_of(namespace, "kv", key), whole(no_body(204)), once())


def delete_present(namespace: str, key: str) -> Call[bool]:
    """Delete the key, and say whether it was there."""

    def decode(answer: Answer) -> bool:
        if answer.head.status not in (204, 412):
            raise refusal(answer)
        return answer.head.status == 204

    return Call("DELETE", target_of(namespace, "kv", key), whole(decode), ((b"if-match", b"*"), *once()))


def batch(
    namespace: str,
    *,
    gets: Sequence[str] = (),
    sets: Iterable[tuple[str, Value]] = (),
    deletes: Sequence[str] = (),
    ttl: str | float | None = None,
    if_match: Mapping[str, str] | None = None,
) -> Call[Batch]:
    """An atomic batch of gets, sets (which share a ``ttl``) and deletes; ``if_match`` has the ETags of keys to set."""
    expiry = msgspec.UNSET if ttl is None else ttl
    parts = [_SetShape(key, *value_members(value), ttl=expiry) for key, value in sets]
    body: dict[str, Any] = {}
    if if_match is not None:
        for part in parts:
            part.if_match = if_match[part.key]
    if gets:
        body["get"] = gets
    if parts:
        body["set"] = parts
    if deletes:
        body["delete"] = deletes
    asked = set(gets)
    written = {part.key for part in parts}

    def decode(answer: Answer) -> Batch:
        result = json_body(answer, _BATCH, 200, get=len(asked), set=len(written))
        entries = _entries(answer, result.get)
        etags = {put.key: bare_etag(put.etag) for put in result.set}
        if not asked.issuperset(key for key, _ in entries) or etags.keys() != written:
            malformed("there are other keys than were asked for", answer.head)
        return Batch(entries, etags)

    headers = JSON_BODY + once() if parts or deletes else JSON_BODY
    return Call("POST", target_of(namespace, "kv"), whole(decode), headers, msgspec.json.encode(body))


def _entry(answer: Answer) -> StoredEntry | None:
    head = answer.head
    if head.status != 200:
        if problem_code(answer, 404) == "key-not-found":
            return None
        raise refusal(answer)
    media_type = bare_media_type(head)
    etag = head.headers.get("etag")
    expires = head.headers.get("rstore-expires")
    if not media_type or etag is None or (expires is not None and not _EXPIRES.match(expires)):
        malformed("it lacks the headers of an entry", head)
    return StoredEntry(
        Value(encoding_of(media_type), answer.body), bare_etag(etag), None if expires is None else int(expires)
    )


def _entries(answer: Answer, found: list[_EntryShape]) -> list[tuple[str, StoredEntry]]:
    """The pairs, counted."""
    answer.spend(sum(_ENTRY_BYTES + sys.getsizeof(entry.key) + len(entry.value) for entry in found))
    return [
        (entry.key, StoredEntry(value_in(entry.value, entry.encoding), bare_etag(entry.etag), entry.expires))
        for entry in found
    ]


def _put_etag(answer: Answer) -> str:
    if answer.head.status not in (201, 204):
        raise refusal(answer)
    etag = answer.head.headers.get("etag")
    if etag is None:
        malformed("it has no ETag", answer.head)
    return bare_etag(etag)
