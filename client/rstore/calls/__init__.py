"""Every operation as data: what is sent, and how the answer is read. Pure; nothing here does I/O.

Each function returns a :class:`Call`. Whoever has one sends its method, target, headers and body, hands the answer to
``call.reader``, and has a checked result or a :class:`~rstore.StoreError`. The server is not trusted: an
answer of another status, media type or shape than asked for is a :class:`~rstore.StoreProtocolError`.

**Every call may be sent again.** A write carries an id, the same in each attempt, under which the service carries it
out once and answers it alike each time, however late an attempt arrives.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import re
import sys
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from rstore.core.encodings import JSON_MEDIA_TYPE, POINTS_MEDIA_TYPE, Encoding, Value, encoding_of, media_type_of
from rstore.core.errors import (
    PROBLEMS,
    StoreAccessError,
    StoreAuthenticationError,
    StoreConflictError,
    StoreError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreNotFoundError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.memory import PAGE_ITEMS_MAX, Spend, free, json_memory
from rstore.core.names import KEY_BYTES_MAX
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATORS, UNARY
from rstore.core.points import FrameReader, InvalidPoints, Points

__all__ = [
    "RETRIED_STATUSES",
    "AccessLevel",
    "Answer",
    "Batch",
    "Call",
    "Event",
    "Head",
    "NamespaceInfo",
    "NewToken",
    "Page",
    "Reader",
    "Removed",
    "State",
    "Steps",
    "StoredEntry",
    "Token",
    "TryAgain",
    "es_apply",
    "es_current",
    "es_events",
    "es_list",
    "es_past",
    "es_prune",
    "es_reseal",
    "es_sizes",
    "kv_batch",
    "kv_delete",
    "kv_delete_present",
    "kv_find",
    "kv_get",
    "kv_has",
    "kv_list",
    "kv_put",
    "ns_create",
    "ns_discard",
    "ns_info",
    "ns_list",
    "service_info",
    "token_create",
    "token_list",
    "token_revoke",
    "token_rotate",
    "ts_complete",
    "ts_end",
    "ts_extend",
    "ts_list",
    "ts_missing",
    "ts_points",
    "ts_range",
    "ts_remove",
    "ts_sizes",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


# What says that the service, or a proxy before it, is busy or away for a moment.
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})

# What is kept of an answer takes at most so many bytes, beside names and data: CPython's objects, on 64 bits.
_TUPLE_BYTES: Final = 112
_SLOT_BYTES: Final = 16
_INTEGER_BYTES: Final = 48
_POINT_BYTES: Final = 152
_ENTRY_BYTES: Final = 600
_ITEM_BYTES: Final = 200
_EVENT_BYTES: Final = 560
_INT64_CHARACTERS: Final = 21

_CURSOR_LENGTH_MAX: Final = 4_096
_MESSAGE_LENGTH_MAX: Final = 500
_PROBLEM_BYTES_MAX: Final = 2**16
_RETRY_AFTER: Final = re.compile(r"[0-9]{1,6}\Z")
_ETAG: Final = re.compile(r'"([\x21\x23-\x7e]{1,256})"\Z')
_BARE_ETAG: Final = re.compile(r"[\x21\x23-\x7e]{1,256}\Z")
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,200}\Z")


# --- calls and answers -------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """A whole answer. ``spend`` is told how much memory is taken by what is made of it, before it is made."""

    head: Head
    body: bytes
    spend: Spend = free


class Reader(Protocol[T_co]):
    """Reads one answer: is fed the chunks of its body, then asked for the result."""

    def feed(self, chunk: bytes, /) -> None: ...

    def finish(self) -> T_co: ...


@dataclasses.dataclass(slots=True)
class Call(Generic[T]):
    """A request, and what reads its answer. ``target`` is percent-encoded path and query.

    A reader is made of the answer's head and of what counts the memory that it takes: it says how much that will be
    before it takes it. The bytes that it is fed are counted already.

    An operation of one or several steps is a generator of calls: ``found = yield from call`` yields the call and is
    sent what its reader made of the answer. ``own_budget``: the memory that the answers of an operation may take is not
    shared with this one, as the operation keeps nothing of it. What is not ``repeatable`` must not be carried out twice
    and has no id by which the service would see to that.
    """

    method: str
    target: str
    reader: Callable[[Head, Spend], Reader[T]]
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    own_budget: bool = False
    repeatable: bool = True

    def __iter__(self) -> Steps[T]:
        answer: T = yield self
        return answer


Steps: TypeAlias = Generator[Call[Any], Any, T]


class TryAgain(Exception):
    """The attempt failed in a way that the next one may not.

    ``error`` is what to raise if there is no next one; ``after_seconds`` what the service asked to wait, or None;
    ``unsent``: there was no connection, so nothing was sent.
    """

    def __init__(self, error: StoreError, after_seconds: float | None = None, *, unsent: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_seconds = after_seconds
        self.unsent = unsent


class _Whole(Generic[T]):
    """A reader that gathers the body and decodes it at once."""

    __slots__ = ("_body", "_decode", "_head", "_spend")

    def __init__(self, decode: Callable[[Answer], T], head: Head, spend: Spend) -> None:
        self._decode = decode
        self._head = head
        self._spend = spend
        self._body: bytes | bytearray = b""

    def feed(self, chunk: bytes, /) -> None:
        if not self._body:
            self._body = chunk
            return
        # Many small chunks would take many times their bytes in a list.
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += chunk

    def finish(self) -> T:
        body, self._body = bytes(self._body), b""
        return self._decode(Answer(self._head, body, self._spend))


def _whole(decode: Callable[[Answer], T]) -> Callable[[Head, Spend], Reader[T]]:
    return functools.partial(_Whole, decode)


# --- reading answers ---------------------------------------------------------------------------------------


class _Problem(msgspec.Struct):
    code: str | None = None
    title: str = ""
    detail: str = ""
    request_id: str | None = None


_PROBLEM: Final = msgspec.json.Decoder(_Problem)
_STATUS_ERRORS: Final[dict[int, type[StoreError]]] = {
    401: StoreAuthenticationError,
    403: StoreAccessError,
    404: StoreNotFoundError,
    408: StoreNotAvailableError,
    409: StoreConflictError,
    412: StoreConflictError,
    413: StoreLimitError,
    414: StoreLimitError,
    429: StoreLimitError,
}


def _malformed(what: str, head: Head | None = None) -> NoReturn:
    status = head.status if head else None
    raise StoreProtocolError(f"the server's answer is not one of an rstore service: {what}", status=status)


def _printable(text: str) -> str:
    """Text of the server that may stand in a message: bounded, and without control characters."""
    return "".join(character if character.isprintable() else " " for character in text[:_MESSAGE_LENGTH_MAX])


def _media_type(head: Head) -> str:
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_problem(answer: Answer) -> bool:
    """Whether it is a problem document, which is never as long as some answers that are none."""
    return _media_type(answer.head) == "application/problem+json" and len(answer.body) <= _PROBLEM_BYTES_MAX


def _refusal(answer: Answer) -> Exception:
    """The exception for an answer that is none of those asked for."""
    head = answer.head
    if not 400 <= head.status <= 599:
        location = " (redirects are not followed)" if 300 <= head.status <= 399 else ""
        return StoreProtocolError(f"the server answered with status {head.status}{location}", status=head.status)
    problem = _Problem()
    document: dict[str, Any] = {}
    if _is_problem(answer):
        try:
            problem = _PROBLEM.decode(answer.body)
            document = msgspec.json.decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            problem = _Problem()
    known = PROBLEMS.get(problem.code or "")
    if known is not None and known.status == head.status:
        exception, title = known.exception, known.title
    else:
        exception = _STATUS_ERRORS.get(head.status, StoreNotAvailableError if head.status >= 500 else StoreRequestError)
        title = problem.title or f"the server answered with status {head.status}"
    request_id = problem.request_id or head.headers.get("x-request-id")
    if request_id is not None and not _REQUEST_ID.match(request_id):
        request_id = None
    error = exception(
        _printable(problem.detail or title),
        code=problem.code,
        status=head.status,
        request_id=request_id,
        problem=document,
    )
    if head.status not in RETRIED_STATUSES:
        return error
    after = head.headers.get("retry-after", "").strip()
    return TryAgain(error, float(after) if _RETRY_AFTER.match(after) else None)


def _json(answer: Answer, decoder: msgspec.json.Decoder[T], *statuses: int, **most: int) -> T:
    """The body of an answer that must be JSON of a given shape with one of these statuses.

    ``most`` says how many objects an array of that name may have. What has more, or would take too much memory, is not
    decoded. What has been decoded counts no more: what is made of it is for the caller to count.
    """
    head, body, spend = answer
    if head.status not in statuses:
        raise _refusal(answer)
    if _media_type(head) != JSON_MEDIA_TYPE:
        _malformed("it is not JSON", head)
    size = json_memory(body)
    spend(size)
    try:
        if most and body.count(b"{") > 1 + sum(most.values()):
            arrays = _ARRAYS.decode(body)
            if any(len(getattr(arrays, name)) > number for name, number in most.items()):
                _malformed("there are more items than were asked for", head)
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else _printable(str(error))
        _malformed(reason, head)
    finally:
        spend(-size)


class _Object(msgspec.Struct, gc=False):
    """An object of which nothing is kept."""


class _Arrays(msgspec.Struct):
    """The arrays of an answer, decoded as far as it takes to count their objects."""

    items: list[_Object] = []
    events: list[_Object] = []
    get: list[_Object] = []
    set: list[_Object] = []


_ARRAYS: Final = msgspec.json.Decoder(_Arrays)


def _code(answer: Answer, status: int) -> str | None:
    """The problem code of an answer with this status; None if it has another status or is no problem document."""
    if answer.head.status != status or not _is_problem(answer):
        return None
    try:
        return _PROBLEM.decode(answer.body).code
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _nothing(*statuses: int) -> Callable[[Answer], None]:
    def decode(answer: Answer) -> None:
        if answer.head.status not in statuses:
            raise _refusal(answer)

    return decode


# --- values in JSON ----------------------------------------------------------------------------------------

_Name = Annotated[str, msgspec.Meta(max_length=KEY_BYTES_MAX)]
_Int64 = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
_NULL: Final = msgspec.Raw(b"null")
_BASE64: Final = msgspec.json.Decoder(str)


def _value(raw: msgspec.Raw, label: str) -> Value:
    """The value that stands in JSON as ``raw`` beside its encoding's label."""
    if label == "json":
        return Value(Encoding.JSON, bytes(raw))
    try:
        return Value(Encoding.from_label(label), base64.b64decode(_BASE64.decode(raw), validate=True))
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        _malformed("a value is not what its encoding says")


def _members(value: Value) -> tuple[msgspec.Raw | str, str | msgspec.UnsetType]:
    """The members ``value`` and ``encoding`` by which a value stands in a body."""
    encoding, data = value
    if encoding is Encoding.JSON:
        return msgspec.Raw(data), msgspec.UNSET
    return base64.b64encode(data).decode("ascii"), encoding.label


def _etag(text: str) -> str:
    """A bare ETag from a header or a body, where it stands with or without quotes."""
    if _BARE_ETAG.match(text):
        return text
    match = _ETAG.match(text)
    if match is None:
        _malformed("an ETag is malformed")
    return match[1]


# --- targets -----------------------------------------------------------------------------------------------

_DOTS: Final = {".": "%2E", "..": "%2E%2E"}
_JSON_BODY: Final = ((b"content-type", JSON_MEDIA_TYPE.encode()), (b"accept", JSON_MEDIA_TYPE.encode()))
_ACCEPT_JSON: Final = ((b"accept", JSON_MEDIA_TYPE.encode()),)


def _segment(key: str) -> str:
    """A key as one path segment. A dot segment is escaped too, or a URL library would take it for a direction."""
    return _DOTS.get(key) or quote(key, safe="")


def _once() -> tuple[tuple[bytes, bytes], ...]:
    """The header by which the service knows a write when it is sent again."""
    return ((b"idempotency-key", uuid.uuid4().hex.encode()),)


def _query(**parameters: str | float | None) -> str:
    """A query string of the parameters that are not None."""
    pairs = [f"{name}={quote(str(value), safe='')}" for name, value in parameters.items() if value is not None]
    return "?" + "&".join(pairs) if pairs else ""


def _target(namespace: str, kind: str, key: str | None = None, part: str = "", query: str = "") -> str:
    path = f"/ns/{_segment(namespace)}/{kind}"
    if key is not None:
        path += f"/{_segment(key)}"
    return f"{path}/{part}{query}" if part else path + query


# --- listings ----------------------------------------------------------------------------------------------


class Page(NamedTuple, Generic[T]):
    """Part of a listing in key order; ``cursor`` fetches the next part, None at the end."""

    items: list[T]
    cursor: str | None


class _Page(msgspec.Struct, Generic[T]):
    items: list[T]
    cursor: Annotated[str, msgspec.Meta(max_length=_CURSOR_LENGTH_MAX)] | None


class _Key(msgspec.Struct):
    key: _Name


class _Sized(msgspec.Struct):
    key: _Name
    points: _Count = 0
    events: _Count = 0


class _Namespace(msgspec.Struct):
    namespace: _Name


_KEY_PAGE: Final = msgspec.json.Decoder(_Page[_Key])
_SIZE_PAGE: Final = msgspec.json.Decoder(_Page[_Sized])
_NAMESPACE_PAGE: Final = msgspec.json.Decoder(_Page[_Namespace])


def _page(answer: Answer, decoder: msgspec.json.Decoder[_Page[T]]) -> _Page[T]:
    return _json(answer, decoder, 200, items=PAGE_ITEMS_MAX)


def _names(answer: Answer, names: list[str]) -> list[str]:
    """The names of a listing, counted."""
    answer.spend(sum(map(sys.getsizeof, names)) + _SLOT_BYTES * len(names))
    return names


def _key_page(answer: Answer) -> Page[str]:
    page = _page(answer, _KEY_PAGE)
    return Page(_names(answer, [item.key for item in page.items]), page.cursor)


def _size_page(answer: Answer) -> Page[tuple[str, int]]:
    page = _page(answer, _SIZE_PAGE)
    _names(answer, [item.key for item in page.items])
    answer.spend(_TUPLE_BYTES * len(page.items))
    return Page([(item.key, item.points + item.events) for item in page.items], page.cursor)


def _key_list(namespace: str, kind: str, cursor: str | None) -> Call[Page[str]]:
    return Call("GET", _target(namespace, kind, query=_query(cursor=cursor)), _whole(_key_page), _ACCEPT_JSON)


# --- the service and its namespaces ------------------------------------------------------------------------


class NamespaceInfo(msgspec.Struct, frozen=True):
    """A namespace: whether it takes only sealed values, and how many keys, series and sequences it holds."""

    namespace: str
    sealed_only: bool
    kv: _Count
    ts: _Count
    es: _Count


_NAMESPACE_INFO: Final = msgspec.json.Decoder(NamespaceInfo)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def service_info() -> Call[dict[str, Any]]:
    """What the service says of itself: version, backend and its durability, limits."""
    return Call("GET", "/", _whole(lambda answer: _json(answer, _OBJECT, 200)), _ACCEPT_JSON)


def ns_list(cursor: str | None = None) -> Call[Page[str]]:
    """One page of the names of the namespaces that the token reaches."""

    def decode(answer: Answer) -> Page[str]:
        page = _page(answer, _NAMESPACE_PAGE)
        return Page(_names(answer, [item.namespace for item in page.items]), page.cursor)

    return Call("GET", "/ns" + _query(cursor=cursor), _whole(decode), _ACCEPT_JSON)


def _namespace_info(answer: Answer) -> NamespaceInfo:
    return _json(answer, _NAMESPACE_INFO, 200, 201)


def ns_create(namespace: str, *, sealed_only: bool | None = None) -> Call[NamespaceInfo]:
    """Create the namespace or leave it as it is; ``sealed_only`` sets its policy, None leaves that too."""
    body = b"" if sealed_only is None else msgspec.json.encode({"sealed_only": sealed_only})
    headers = _JSON_BODY if body else _ACCEPT_JSON
    return Call("PUT", f"/ns/{_segment(namespace)}", _whole(_namespace_info), headers + _once(), body)


def ns_info(namespace: str) -> Call[NamespaceInfo | None]:
    """The namespace, or None if it does not exist."""

    def decode(answer: Answer) -> NamespaceInfo | None:
        return None if _code(answer, 404) == "namespace-not-found" else _namespace_info(answer)

    return Call("GET", f"/ns/{_segment(namespace)}", _whole(decode), _ACCEPT_JSON)


def ns_discard(namespace: str) -> Call[None]:
    """Delete the namespace and everything in it."""
    return Call("DELETE", f"/ns/{_segment(namespace)}", _whole(_nothing(204)), _once())


# --- tokens ------------------------------------------------------------------------------------------------


AccessLevel: TypeAlias = Literal["metrics", "read", "write", "admin"]


class Token(msgspec.Struct, frozen=True):
    """An access token, without its text: the globs of namespaces that it reaches, and its access."""

    id: str
    label: str
    namespaces: list[str]
    access: str
    created_ms: _Int64 = msgspec.field(name="created")
    expires_ms: _Int64 | None = msgspec.field(name="expires")


class NewToken(Token, frozen=True):
    """A token with its ``text``, which is known now and never again, and which no ``repr`` shows."""

    text: str = msgspec.field(name="token")

    def __repr__(self) -> str:
        return f"<NewToken {self.id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # What msgspec gives to rich, which consoles and tracebacks use, has every field.
        return [("id", self.id)]


_TOKEN_PAGE: Final = msgspec.json.Decoder(_Page[Token])
_NEW_TOKEN: Final = msgspec.json.Decoder(NewToken)


def token_list(cursor: str | None = None) -> Call[Page[Token]]:
    """One page of tokens."""

    def decode(answer: Answer) -> Page[Token]:
        page = _page(answer, _TOKEN_PAGE)
        answer.spend(json_memory(answer.body))
        return Page(page.items, page.cursor)

    return Call("GET", "/tokens" + _query(cursor=cursor), _whole(decode), _ACCEPT_JSON)


def token_create(
    namespaces: Sequence[str], access: AccessLevel, *, label: str, lifetime_seconds: float | None
) -> Call[NewToken]:
    """Make a token. Sent twice, it would make two."""
    body = msgspec.json.encode(
        {"namespaces": namespaces, "access": access, "label": label, "lifetime_seconds": lifetime_seconds}
    )
    return Call("POST", "/tokens", _whole(_new_token), _JSON_BODY, body, repeatable=False)


def token_revoke(token_id: str) -> Call[None]:
    """End the token. One that is not there is an error."""
    return Call("DELETE", f"/tokens/{_segment(token_id)}", _whole(_nothing(204)), _once())


def token_rotate(token_id: str, *, grace_seconds: float) -> Call[NewToken]:
    """Give the token another text. Sent twice, the one that was used until then would be none."""
    body = msgspec.json.encode({"grace_seconds": grace_seconds})
    target = f"/tokens/{_segment(token_id)}/rotate"
    return Call("POST", target, _whole(_new_token), _JSON_BODY, body, repeatable=False)


def _new_token(answer: Answer) -> NewToken:
    return _json(answer, _NEW_TOKEN, 200, 201)


# --- key/value ---------------------------------------------------------------------------------------------


class StoredEntry(NamedTuple):
    """A stored pair as the service has it. ``etag`` is bare; ``expires_ms`` POSIX milliseconds or None."""

    value: Value
    etag: str
    expires_ms: int | None


class Batch(NamedTuple):
    """The answer to a batch: the gets that exist, and the ETag of each set."""

    entries: list[tuple[str, StoredEntry]]
    etags: dict[str, str]


class _Entry(msgspec.Struct):
    key: _Name
    etag: str
    value: msgspec.Raw
    encoding: str = "json"
    expires: _Int64 | None = None


class _Put(msgspec.Struct):
    key: _Name
    etag: str


class _Set(msgspec.Struct):
    key: str
    value: msgspec.Raw | str
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    ttl: str | float | msgspec.UnsetType = msgspec.UNSET
    if_match: str | msgspec.UnsetType = msgspec.UNSET


class _Batch(msgspec.Struct):
    get: list[_Entry] = []
    set: list[_Put] = []


_ENTRY_PAGE: Final = msgspec.json.Decoder(_Page[_Entry])
_BATCH: Final = msgspec.json.Decoder(_Batch)
_EXPIRES: Final = re.compile(r"-?[0-9]{1,19}\Z")


def kv_list(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys."""
    return _key_list(namespace, "kv", cursor)


def kv_find(namespace: str, match: str | None, cursor: str | None = None) -> Call[Page[tuple[str, StoredEntry]]]:
    """One page of the pairs whose key matches the glob."""

    def decode(answer: Answer) -> Page[tuple[str, StoredEntry]]:
        page = _page(answer, _ENTRY_PAGE)
        if match is not None and not all(map(_glob(match).match, [item.key for item in page.items])):
            _malformed("there are other keys than were asked for", answer.head)
        return Page(_entries(answer, page.items), page.cursor)

    query = _query(match=match, values="true", cursor=cursor)
    return Call("GET", _target(namespace, "kv", query=query), _whole(decode), _ACCEPT_JSON)


def _entries(answer: Answer, found: list[_Entry]) -> list[tuple[str, StoredEntry]]:
    """The pairs, counted."""
    answer.spend(sum(_ENTRY_BYTES + sys.getsizeof(entry.key) + len(entry.value) for entry in found))
    return [
        (entry.key, StoredEntry(_value(entry.value, entry.encoding), _etag(entry.etag), entry.expires))
        for entry in found
    ]


def _glob(pattern: str) -> re.Pattern[str]:
    """What matches a whole key as the glob does, in time linear in the key but for the pattern's length.

    The leftmost place for each part between two asterisks leaves the most room for the next, so none is tried again.
    """
    first, *others = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    middle = "".join(f"(?>.*?{part})" for part in others[:-1] if part)
    last = f".*{others[-1]}" if others else ""
    return re.compile(rf"{first}{middle}{last}\Z", re.DOTALL)


def kv_get(namespace: str, key: str) -> Call[StoredEntry | None]:
    """The pair, or None if the key is not there."""
    return Call("GET", _target(namespace, "kv", key), _ENTRY_READER)


def _entry(answer: Answer) -> StoredEntry | None:
    head = answer.head
    if head.status != 200:
        if _code(answer, 404) == "key-not-found":
            return None
        raise _refusal(answer)
    media_type = _media_type(head)
    etag = head.headers.get("etag")
    expires = head.headers.get("rstore-expires")
    if not media_type or etag is None or (expires is not None and not _EXPIRES.match(expires)):
        _malformed("it lacks the headers of an entry", head)
    return StoredEntry(
        Value(encoding_of(media_type), answer.body), _etag(etag), None if expires is None else int(expires)
    )


_ENTRY_READER: Final = _whole(_entry)


def kv_has(namespace: str, key: str) -> Call[bool]:
    """Whether the key is there. Its value is not fetched."""

    def decode(answer: Answer) -> bool:
        # An answer to HEAD has no body, so its status is all there is.
        if answer.head.status not in (200, 404):
            raise _refusal(answer)
        return answer.head.status == 200

    return Call("HEAD", _target(namespace, "kv", key), _whole(decode))


def _put_etag(answer: Answer) -> str:
    if answer.head.status not in (201, 204):
        raise _refusal(answer)
    etag = answer.head.headers.get("etag")
    if etag is None:
        _malformed("it has no ETag", answer.head)
    return _etag(etag)


def kv_put(
    namespace: str,
    key: str,
    value: Value,
    *,
    ttl: str | float | None = None,
    if_match: str | None = None,
    if_absent: bool = False,
) -> Call[str]:
    """Store the value and answer its ETag. ``ttl``: seconds, ``"never"``, or None to keep the expiry there is."""
    headers = ((b"content-type", media_type_of(value.encoding).encode()), *_once())
    if if_match is not None:
        headers += ((b"if-match", _condition(if_match).encode()),)
    if if_absent:
        headers += ((b"if-none-match", b"*"),)
    return Call("PUT", _target(namespace, "kv", key, query=_query(ttl=ttl)), _whole(_put_etag), headers, value.data)


def _condition(etag: str) -> str:
    """An ETag of the caller's as a header carries it."""
    if not _BARE_ETAG.match(etag):
        message = "if_match is an ETag, 1 to 256 visible ASCII characters without quotes, or *"
        raise StoreRequestError(message, code="invalid-parameter")
    return etag if etag == "*" else f'"{etag}"'


def kv_delete(namespace: str, key: str) -> Call[None]:
    """Delete the key if it is there."""
    return Call("DELETE", _target(namespace, "kv", key), _whole(_nothing(204)), _once())


def kv_delete_present(namespace: str, key: str) -> Call[bool]:
    """Delete the key, and say whether it was there."""

    def decode(answer: Answer) -> bool:
        if answer.head.status not in (204, 412):
            raise _refusal(answer)
        return answer.head.status == 204

    return Call("DELETE", _target(namespace, "kv", key), _whole(decode), ((b"if-match", b"*"), *_once()))


def kv_batch(
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
    parts = [_Set(key, *_members(value), ttl=expiry) for key, value in sets]
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
        result = _json(answer, _BATCH, 200, get=len(asked), set=len(written))
        entries = _entries(answer, result.get)
        etags = {put.key: _etag(put.etag) for put in result.set}
        if not asked.issuperset(key for key, _ in entries) or etags.keys() != written:
            _malformed("it speaks of other keys than were asked for", answer.head)
        return Batch(entries, etags)

    headers = _JSON_BODY + _once() if parts or deletes else _JSON_BODY
    return Call("POST", _target(namespace, "kv"), _whole(decode), headers, msgspec.json.encode(body))


# --- time series -------------------------------------------------------------------------------------------


class _Point(msgspec.Struct):
    point: list[msgspec.Raw]


class _Missing(msgspec.Struct):
    missing: list[_Int64]


class _Complete(msgspec.Struct):
    complete: bool


class _PointCount(msgspec.Struct):
    points: _Count


class Removed(msgspec.Struct):
    """How many points or events a DELETE removed."""

    removed: _Count


_POINT: Final = msgspec.json.Decoder(_Point)
_TIMESTAMP: Final = msgspec.json.Decoder(_Int64)
_MISSING: Final = msgspec.json.Decoder(_Missing)
_COMPLETE: Final = msgspec.json.Decoder(_Complete)
_POINT_COUNT: Final = msgspec.json.Decoder(_PointCount)
_REMOVED: Final = msgspec.json.Decoder(Removed)
_POINTS_BODY: Final = ((b"content-type", POINTS_MEDIA_TYPE.encode()), (b"accept", JSON_MEDIA_TYPE.encode()))
_ACCEPT_POINTS: Final = ((b"accept", POINTS_MEDIA_TYPE.encode()),)


def ts_list(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys of the series."""
    return _key_list(namespace, "ts", cursor)


def ts_sizes(namespace: str, cursor: str | None = None) -> Call[Page[tuple[str, int]]]:
    """One page of the keys of the series, each with its number of points."""
    return Call("GET", _target(namespace, "ts", query=_query(cursor=cursor)), _whole(_size_page), _ACCEPT_JSON)


class _PointsReader(Generic[T]):
    """Reads frames as they come, and checks that they are what was asked for."""

    def __init__(
        self, unpack: Callable[[Points], list[T]], low: int, high: int, n: int | None, step: int, spend: Spend
    ) -> None:
        self._frames = FrameReader(admit=self._admit)
        self._unpack = unpack
        self._next = low
        self._high = high
        self._n = n
        self._step = step
        self._spend = spend
        self._count = 0
        self._points: list[T] = []

    def feed(self, chunk: bytes, /) -> None:
        try:
            for points in self._frames.feed(chunk):
                self._take(points)
        except InvalidPoints as error:
            _malformed(str(error))

    def _admit(self, count: int, size: int) -> None:
        """Before a frame is decoded: it says that it holds so many points, in columns of so many bytes."""
        self._count += count
        if self._n is not None and self._count > self._n:
            _malformed("there are more points than were asked for")
        self._spend(size + _POINT_BYTES * count)

    def _take(self, points: Points) -> None:
        times = points.timestamps
        if not len(times):
            return
        if times[0] < self._next or times[-1] > self._high:
            _malformed("points are out of order or outside the range asked for")
        if self._step > 1 and not all(map(self._step.__le__, map(int.__sub__, times[1:], times))):
            _malformed("points are closer to each other than `freq`")
        self._next = times[-1] + self._step
        self._points += self._unpack(points)

    def finish(self) -> list[T]:
        try:
            self._frames.finish()
        except InvalidPoints as error:
            _malformed(str(error))
        return self._points


def ts_range(
    namespace: str,
    key: str,
    unpack: Callable[[Points], list[T]],
    *,
    start: int | None,
    end: int | None,
    n: int | None,
    freq: int | None,
) -> Call[list[T]]:
    """The points from ``start`` to ``end``, each frame of them turned into a list by ``unpack`` as it arrives."""
    low = INT64_MIN if start is None else start
    high = INT64_MAX if end is None else end

    def reader(head: Head, spend: Spend) -> Reader[list[T]]:
        if head.status != 200:
            return _Whole(_raise_refusal, head, spend)
        if _media_type(head) != POINTS_MEDIA_TYPE:
            _malformed("it is not of the points form", head)
        return _PointsReader(unpack, low, high, n, freq or 1, spend)

    query = _query(start=start, end=end, n=n, freq=freq)
    return Call("GET", _target(namespace, "ts", key, "range", query), reader, _ACCEPT_POINTS)


def ts_points(
    namespace: str, key: str, *, start: int, end: int | None = None, n: int | None = None
) -> Call[list[Points]]:
    """The points from ``start`` to ``end`` as they are stored, in parts."""
    return ts_range(namespace, key, lambda points: [points], start=start, end=end, n=n, freq=None)


def _raise_refusal(answer: Answer) -> NoReturn:
    raise _refusal(answer)


def ts_end(namespace: str, key: str, which: str) -> Call[tuple[int, Value] | None]:
    """The ``first`` or ``last`` point, or None if there is no point."""

    def decode(answer: Answer) -> tuple[int, Value] | None:
        if _code(answer, 404) == "series-not-found":
            return None
        point = _json(answer, _POINT, 200).point
        if len(point) not in (2, 3):
            _malformed("a point has two or three members", answer.head)
        try:
            label = _BASE64.decode(point[2]) if len(point) == 3 else "json"
            return _TIMESTAMP.decode(point[0]), _value(point[1], label)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            _malformed("a point is malformed", answer.head)

    return Call("GET", _target(namespace, "ts", key, which), _whole(decode), _ACCEPT_JSON)


def ts_missing(namespace: str, key: str, start: int, end: int | None, freq: int) -> Call[list[int]]:
    """The timestamps of the grid that have no point."""

    def decode(answer: Answer) -> list[int]:
        last = INT64_MAX if end is None else end
        if len(answer.body) > 1_024 + _INT64_CHARACTERS * max((last - start) // freq + 1, 0):
            _malformed("there are more timestamps than were asked for", answer.head)
        missing = _json(answer, _MISSING, 200).missing
        answer.spend(_INTEGER_BYTES * len(missing))
        ascending = all(map(int.__lt__, missing, missing[1:]))
        if not ascending or any((t - start) % freq or not start <= t <= last for t in missing):
            _malformed("it names timestamps that are not on the grid", answer.head)
        return missing

    query = _query(start=start, end=end, freq=freq)
    return Call("GET", _target(namespace, "ts", key, "missing", query), _whole(decode), _ACCEPT_JSON)


def ts_complete(namespace: str, key: str, start: int, end: int | None, freq: int) -> Call[bool]:
    """Whether every timestamp of the grid has a point."""
    query = _query(start=start, end=end, freq=freq)
    target = _target(namespace, "ts", key, "complete", query)
    return Call("GET", target, _whole(lambda answer: _json(answer, _COMPLETE, 200).complete), _ACCEPT_JSON)


def ts_extend(namespace: str, key: str, frames: bytes, *, unchanged: tuple[int, int, str] | None = None) -> Call[int]:
    """Add or replace points, given as frames; answers how many were sent.

    ``unchanged``: only if the points of a stretch, from its first to its last timestamp, still have this digest.
    """
    start, end, digest = unchanged or (None, None, None)
    headers = _POINTS_BODY + _once()
    if digest is not None:
        headers += ((b"if-match", _condition(digest).encode()),)
    target = _target(namespace, "ts", key, "range", _query(start=start, end=end))
    return Call("POST", target, _whole(lambda answer: _json(answer, _POINT_COUNT, 200).points), headers, frames)


def ts_remove(namespace: str, key: str, start: int | None, end: int | None) -> Call[Removed]:
    """Remove the points from ``start`` to ``end``."""
    target = _target(namespace, "ts", key, "range", _query(start=start, end=end))
    headers = _ACCEPT_JSON + _once()
    return Call("DELETE", target, _whole(lambda answer: _json(answer, _REMOVED, 200)), headers)


# --- event sequences ---------------------------------------------------------------------------------------


class Event(NamedTuple):
    """An event as the service has it: ``op`` is the operator's name, ``value`` for a unary one None or sealed."""

    timestamp: int
    item: str
    op: str
    value: Value | None


class State(NamedTuple):
    """A sequence as of some event.

    ``items`` is what the service folded, ``events`` are those, in order, of the items that only a client can fold; no
    item is in both.
    """

    timestamp: int
    revision: int
    items: dict[str, Value]
    events: list[Event]


class _Event(msgspec.Struct):
    timestamp: _Int64
    item: _Name
    op: str
    value: msgspec.Raw = _NULL
    encoding: str = "json"

    def event(self) -> Event:
        if self.op not in OPERATORS:
            _malformed("an event has an unknown operator")
        if self.op not in UNARY or self.encoding == "sealed":
            return Event(self.timestamp, self.item, self.op, _value(self.value, self.encoding))
        if self.encoding != "json" or bytes(self.value) != b"null":
            _malformed("an event of a unary operator has a value")
        return Event(self.timestamp, self.item, self.op, None)


class _Change(msgspec.Struct):
    item: str
    op: str
    value: msgspec.Raw | str | msgspec.UnsetType = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.UNSET


class _State(msgspec.Struct):
    timestamp: _Int64
    revision: _Count
    state: dict[_Name, msgspec.Raw] = {}
    events: list[_Event] = []


class _Events(msgspec.Struct):
    events: list[_Event]


class _Resealed(msgspec.Struct):
    resealed: _Count


class _Pruned(msgspec.Struct):
    pruned: _Count
    removed: bool


_STATE: Final = msgspec.json.Decoder(_State)
_EVENTS: Final = msgspec.json.Decoder(_Events)
_RESEALED: Final = msgspec.json.Decoder(_Resealed)
_PRUNED: Final = msgspec.json.Decoder(_Pruned)


def _in_order(answer: Answer, found: list[_Event]) -> list[Event]:
    """The events, counted, and checked to be in order of timestamp, then item, and none twice."""
    answer.spend(sum(_EVENT_BYTES + sys.getsizeof(event.item) + len(event.value) for event in found))
    events = [event.event() for event in found]
    places = [(event.timestamp, event.item) for event in events]
    if not all(map(tuple.__lt__, places, places[1:])):
        _malformed("events are out of order", answer.head)
    return events


def _state(answer: Answer, *, until: int = INT64_MAX) -> State:
    found = _json(answer, _STATE, 200)
    answer.spend(sum(_ITEM_BYTES + sys.getsizeof(item) + len(raw) for item, raw in found.state.items()))
    items = {item: Value(Encoding.JSON, bytes(raw)) for item, raw in found.state.items()}
    events = _in_order(answer, found.events)
    if found.timestamp > until or (events and events[-1].timestamp > found.timestamp):
        _malformed("the state includes later events than it says", answer.head)
    if not items.keys().isdisjoint(event.item for event in events):
        _malformed("an item is folded and unfolded at once", answer.head)
    return State(found.timestamp, found.revision, items, events)


def es_list(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys of the sequences."""
    return _key_list(namespace, "es", cursor)


def es_sizes(namespace: str, cursor: str | None = None) -> Call[Page[tuple[str, int]]]:
    """One page of the keys of the sequences, each with its number of events."""
    return Call("GET", _target(namespace, "es", query=_query(cursor=cursor)), _whole(_size_page), _ACCEPT_JSON)


def es_current(namespace: str, key: str) -> Call[State | None]:
    """The current state, or None if the sequence does not exist."""

    def decode(answer: Answer) -> State | None:
        return None if _code(answer, 404) == "sequence-not-found" else _state(answer)

    return Call("GET", _target(namespace, "es", key, "current"), _whole(decode), _ACCEPT_JSON)


def es_past(namespace: str, key: str, t: int) -> Call[State | None]:
    """The state as of ``t``, or None if there was no event until then."""

    def decode(answer: Answer) -> State | None:
        return None if _code(answer, 404) == "sequence-not-found" else _state(answer, until=t)

    return Call("GET", _target(namespace, "es", key, "past", _query(t=t)), _whole(decode), _ACCEPT_JSON)


def es_events(
    namespace: str,
    key: str,
    *,
    start: int | None = None,
    end: int | None = None,
    ops: Iterable[str] | None = None,
    item: str | None = None,
    n: int | None = None,
) -> Call[list[Event] | None]:
    """The first ``n`` events from ``start`` to ``end`` of these operators and this item; None if there is no such
    sequence."""
    names = None if ops is None else frozenset(ops)
    low = INT64_MIN if start is None else start
    high = INT64_MAX if end is None else end

    def decode(answer: Answer) -> list[Event] | None:
        if _code(answer, 404) == "sequence-not-found":
            return None
        most = {} if n is None else {"events": n}
        events = _in_order(answer, _json(answer, _EVENTS, 200, **most).events)
        if events and not (low <= events[0].timestamp and events[-1].timestamp <= high):
            _malformed("there are events outside the range asked for", answer.head)
        if any((names is not None and e.op not in names) or (item is not None and e.item != item) for e in events):
            _malformed("there are other events than were asked for", answer.head)
        return events

    query = _query(start=start, end=end, ops=None if names is None else ",".join(sorted(names)), item=item, n=n)
    return Call("GET", _target(namespace, "es", key, "events", query), _whole(decode), _ACCEPT_JSON)


def es_apply(
    namespace: str,
    key: str,
    changes: Iterable[tuple[str, str, Value | None]],
    *,
    timestamp: int | None = None,
    revision: int | None = None,
) -> Call[State]:
    """Apply events, each ``(item, operator name, value)``, at one timestamp; answers the new state."""
    body: dict[str, Any] = {
        "events": [
            _Change(item, op) if value is None else _Change(item, op, *_members(value)) for item, op, value in changes
        ]
    }
    if timestamp is not None:
        body["timestamp"] = timestamp
    if revision is not None:
        body["revision"] = revision
    target = _target(namespace, "es", key, "events")
    return Call("POST", target, _whole(_state), _JSON_BODY + _once(), msgspec.json.encode(body))


def es_prune(namespace: str, key: str, *, remove: bool) -> Call[None]:
    """Delete the events that the current state no longer needs."""

    def decode(answer: Answer) -> None:
        _json(answer, _PRUNED, 200)

    body = msgspec.json.encode({"remove": remove})
    return Call("POST", _target(namespace, "es", key, "prune"), _whole(decode), _JSON_BODY + _once(), body)


def es_reseal(namespace: str, key: str, reseals: Iterable[tuple[int, str, str, Value, Value]]) -> Call[int]:
    """Replace sealed values, each ``(timestamp, item, operator name, present value, new value)``; answers how many."""
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
    target = _target(namespace, "es", key, "reseal")
    body = msgspec.json.encode({"events": events})
    headers = _JSON_BODY + _once()
    return Call("POST", target, _whole(lambda answer: _json(answer, _RESEALED, 200).resealed), headers, body)
