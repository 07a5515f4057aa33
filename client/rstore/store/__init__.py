"""``Store`` and ``AsyncStore``.

What both do is written once, in :class:`_Operations`: an operation is a generator that yields calls, is sent their
answers, and returns its result. ``Store`` and ``AsyncStore`` differ in how they send a call and in nothing else.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import enum
import functools
import inspect
import operator
import os
import ssl
import time
import types
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from decimal import Decimal
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

import httpx2

from rstore import calls
from rstore.calls import AccessLevel, Call, Event, NewToken, Page, State, Steps, Token, TryAgain
from rstore.calls.arguments import (
    Count,
    Name,
    PositiveSeconds,
    Seconds,
    Signature,
    Step,
    check_environment,
    check_flag,
    check_int,
    check_name,
    check_seconds,
    refuse,
)
from rstore.codec.values import dump, dump_numbers, load, load_plaintexts
from rstore.core.encodings import Encoding, InvalidJSON, Value, parse_json
from rstore.core.errors import (
    FrozenStoreError,
    StoreConflictError,
    StoreDecryptionError,
    StoreEncodingError,
    StoreError,
    StoreIntegrityError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.folding import apply_event, fold
from rstore.core.memory import Spend, free, json_memory, texts_memory
from rstore.core.names import InvalidName, check_namespace
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATOR_NAMES, OPERATORS, UNARY, Bounds, UnfoldableEvent
from rstore.core.points import Cells, InvalidPoints, Points, encode_stream, stored_text
from rstore.sealing import EventContext, PairContext, PointContext, Sealer, new_apply_id, pack, unpack
from rstore.sealing.rotation import Rotation, rotate
from rstore.transport import (
    TOO_SLOW,
    Attempts,
    Awaited,
    Budget,
    Certificate,
    Service,
    awaited_transport,
    blocking_transport,
    leave_to_parent,
    translated,
)

__all__ = ["KEEP", "AsyncStore", "Entry", "Keep", "Store"]

P = ParamSpec("P")
T = TypeVar("T")
TransportT = TypeVar("TransportT")

Key: TypeAlias = "str | bytes | Sequence[str | bytes]"

_ANSWER_BYTES_MIN: Final = 2**20
_DEFAULT_URL: Final = "http://127.0.0.1:8000"
_DEFAULT_NAMESPACE: Final = "default"
_KEYS_PER_BATCH: Final = 1_000
_APPLY_ROUNDS_MAX: Final = 100
_NOTHING: Final = Value(Encoding.JSON, b"null")
"""What is sealed for an event of a unary operator: it proves that a holder of the key recorded the event."""


_spending: Final[ContextVar[Spend]] = ContextVar("spending", default=free)
"""What the running operation may still take of memory: :meth:`Budget.spend` of its budget."""


class Keep(enum.Enum):
    """The type of :data:`KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "rstore.KEEP"


KEEP: Final = Keep.KEEP
"""As ``ttl``: a key that exists keeps the expiry it has; a new one never expires."""


class Entry(NamedTuple):
    """A key's value, its ETag, and when it expires (POSIX milliseconds, or None)."""

    value: Any
    etag: str
    expires_ms: int | None


# --- one definition, two faces -----------------------------------------------------------------------------


class operation(Generic[P, T]):  # noqa: N801 (a decorator)
    """Makes a generator of calls a method: one that returns its result on Store, one to await on AsyncStore."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        # What Python says of a wrong call names the function, and the class in which it stands is none of the caller's.
        steps.__qualname__ = steps.__name__
        checked = Signature(steps).checked
        make: Callable[..., Steps[T]] = steps

        def blocking(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
            arguments, options = checked(args, kwargs)
            return store._run(make(store, *arguments, **options))  # noqa: SLF001

        async def awaited(store: AsyncStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
            arguments, options = checked(args, kwargs)
            return await store._run(make(store, *arguments, **options))  # noqa: SLF001

        self.steps = steps
        self.__doc__ = steps.__doc__
        self._blocking: Any = _dressed(blocking, steps)
        self._awaited: Any = _dressed(awaited, steps)

    @overload
    def __get__(self, store: Store, owner: type[Store]) -> Callable[P, T]: ...
    @overload
    def __get__(self, store: AsyncStore, owner: type[AsyncStore]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, store: None, owner: type[Store]) -> Callable[Concatenate[Store, P], T]: ...
    @overload
    def __get__(
        self, store: None, owner: type[AsyncStore]
    ) -> Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, store: None, owner: type[_Operations[Any]]) -> operation[P, T]: ...
    def __get__(self, store: Any, owner: Any) -> Any:
        if issubclass(owner, Store):
            return self._blocking.__get__(store, owner)
        return self._awaited.__get__(store, owner) if issubclass(owner, AsyncStore) else self


def _dressed(method: Callable[..., Any], steps: Callable[..., Any]) -> Callable[..., Any]:
    """The method under the name, signature and docstring of its steps; it returns what the steps return."""
    functools.update_wrapper(method, steps)
    returned = steps.__annotations__["return"].removeprefix("Steps[").removesuffix("]")
    signature = inspect.signature(steps)
    method.__annotations__ = {**steps.__annotations__, "return": returned}
    method.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
    return method


# --- arguments ---------------------------------------------------------------------------------------------


def _expiry(ttl: float | Literal[Keep.KEEP] | None) -> str | float | None:
    """A ttl as the wire has it."""
    if ttl is KEEP:
        return None
    return "never" if ttl is None else ttl


_Home: TypeAlias = "tuple[int, asyncio.AbstractEventLoop | None]"
"""Where connections can be used: in one process, and if they are awaited, under one event loop."""


class _Change(NamedTuple):
    """A change to an item: the operator's name, and the value, None for a unary operator."""

    item: str
    op: str
    value: Value | None


# --- the operations ----------------------------------------------------------------------------------------


class _Operations(Generic[TransportT]):
    """Every operation, for both classes."""

    _namespace: str | None = None
    _transport_type: type[TransportT]
    _key: Key | None = None
    _freq: int | None = None
    _operation_seconds_max: float = 600.0
    _ahead_seconds_max: float = 86_400.0

    def __init__(
        self,
        dsn: str | None = None,
        namespace: str | None = None,
        key: Key | None = None,
        frozen: bool = True,
        *,
        sealed_only: bool | None = None,
        token: str | None = None,
        accept_fernet: bool = False,
        trust_pickle: bool = False,
        timeout: float = 30.0,
        retries: int = 4,
        deadline: float = 60.0,
        answer_bytes_max: int = 2**30,
        verify: Any = True,
        cert: Certificate | None = None,
        transport: TransportT | None = None,
    ) -> None:
        check_environment()
        if key is None:
            key = self._key if self._key is not None else _environment("RSTORE_KEY")
        sealed = key is not None
        # A traceback may show every variable. What an iterator holds it does not show.
        secrets: Iterator[Any] = iter((_environment("RSTORE_TOKEN") if token is None else token, key))
        del key, token
        self.namespace = _chosen_namespace(self._namespace if namespace is None else namespace)
        self.frozen = check_flag(frozen, "frozen")
        self._sealed_only = None if sealed_only is None else check_flag(sealed_only, "sealed_only")
        if frozen and sealed_only is not None:
            raise StoreRequestError(
                "sealed_only changes the namespace; open it with frozen=False", code="invalid-parameter"
            )
        self._service = Service(
            _environment("RSTORE_URL") or _DEFAULT_URL if dsn is None else dsn,
            token=next(secrets),
            timeout=timeout,
            verify=_environment("RSTORE_CA") or True if verify is True else verify,
            cert=_environment("RSTORE_CERT") if cert is None else cert,
        )
        self._trust_pickle = check_flag(trust_pickle, "trust_pickle")
        accept_fernet = check_flag(accept_fernet, "accept_fernet")
        # An empty key or list is a mistake to be refused, not a wish to write in the open.
        self._sealer = Sealer(next(secrets), accept_fernet=accept_fernet) if sealed else None
        self._retries = check_int(retries, "retries", 0)
        self._deadline = check_seconds(deadline, "deadline")
        self._answer_bytes_max = check_int(answer_bytes_max, "answer_bytes_max", _ANSWER_BYTES_MIN)
        # A member of a list takes eight bytes.
        self._bounds = Bounds(length_max=min(Bounds().length_max, self._answer_bytes_max // 8))
        if not isinstance(transport, self._transport_type | None):
            refuse("transport", f"an httpx2.{self._transport_type.__name__}", transport)
        self._given_transport = transport
        self._given_process = os.getpid()
        # None as long as the store is not open.
        self._tls: ssl.SSLContext | bool | None = None
        self._connected: dict[_Home, Any] = {}
        cls = type(self)
        self._dumps_itself = cls._dump is not _Operations._dump
        self._loads_itself = cls._load is not _Operations._load

    def __repr__(self) -> str:
        if "_sealer" not in vars(self):  # Its making failed, and a traceback shows it all the same.
            return super().__repr__()
        traits = ", frozen" * self.frozen + ", sealed" * (self._sealer is not None)
        return f"<{type(self).__name__} {self._service.url} {self.namespace}{traits}>"

    # Values.

    def _dump(self, value: Any) -> str | bytes | Value:
        """Encode a value. May be overridden to return ``str`` or ``bytes``; JSON text stays readable from anywhere."""
        return dump(value, trusted=self._trust_pickle)

    def _load(self, data: str | bytes) -> Any:
        """Decode what ``_dump`` made: ``str`` if it is JSON, else ``bytes``. May be overridden."""
        return load(Value(Encoding.JSON, data.encode()), trusted=False) if isinstance(data, str) else data

    def _encode(self, value: Any) -> Value:
        if not self._dumps_itself:
            return dump(value, trusted=self._trust_pickle)
        dumped = self._dump(value)
        if isinstance(dumped, str):
            try:
                data = dumped.encode()
                parse_json(data)
            except InvalidJSON:
                return Value(Encoding.BYTES, data)
            except UnicodeEncodeError:
                raise StoreEncodingError("_dump returned a str with a lone surrogate") from None
            return Value(Encoding.JSON, data)
        if isinstance(dumped, bytes):
            return Value(Encoding.BYTES, dumped)
        if isinstance(dumped, Value):
            return dumped
        raise StoreEncodingError(f"_dump returns str or bytes, not {type(dumped).__name__}")

    def _decode(self, value: Value) -> Any:
        encoding, data = value
        spend = _spending.get()
        if not self._loads_itself or encoding not in (Encoding.JSON, Encoding.BYTES):
            return load(value, trusted=self._trust_pickle, spend=spend)
        if encoding is Encoding.BYTES:
            return self._load(data)
        spend(json_memory(data))
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise StoreEncodingError("the stored JSON is not UTF-8") from None
        return self._load(text)

    def _seal(self, value: Value, context: PairContext) -> Value:
        return value if self._sealer is None else self._sealer.seal(value, context)

    def _open(self, value: Value, context: PairContext | PointContext | EventContext) -> Any:
        if self._sealer is None:
            return self._decode(value)
        # The opened bytes exist twice for a moment: with the byte that names their encoding, and without it.
        _spending.get()(2 * len(value.data))
        return self._decode(self._sealer.open(value, context))

    def _connect(self) -> None:
        """Be open, without asking the service. Each process and each event loop connects when it makes a call."""
        self._tls = self._service.tls()

    def _new_transport(self, home: _Home, make: Callable[[ssl.SSLContext | bool], TransportT]) -> TransportT:
        """What to send with in a process, or under an event loop, in which nothing has been sent yet."""
        if self._tls is None:
            raise StoreError(_NOT_OPEN)
        self._leave_inherited(home)
        if self._given_transport is None:
            return make(self._tls)
        if home[0] != self._given_process or self._connected.keys() - {home}:
            raise StoreError(
                "the `transport` that the store was given belongs to another process or event loop; "
                "open a store with a transport of its own here"
            )
        return self._given_transport

    def _leave_inherited(self, home: _Home) -> None:
        for other in list(self._connected):
            if other[0] != home[0]:
                leave_to_parent(self._connected.pop(other, None))

    # Steps that several operations share.

    def _check_writable(self) -> None:
        if self.frozen:
            raise FrozenStoreError("the store is frozen; open it with frozen=False to write")

    def _opening(self) -> Steps[None]:
        if not self.frozen:
            yield from calls.ns_create(self.namespace, sealed_only=self._sealed_only)
        elif (yield from calls.ns_info(self.namespace)) is None:
            raise StoreNotAvailableError(
                f"the namespace {self.namespace!r} does not exist; opening it with frozen=False creates it",
                code="namespace-not-found",
                status=404,
            )

    def _names(self, page_after: Callable[[str | None], Call[Page[str]]]) -> Steps[list[str]]:
        """Every name of a listing."""
        return (yield from self._listed(page_after, str))

    def _listed(self, page_after: Callable[[str | None], Call[Page[T]]], name: Callable[[T], str]) -> Steps[list[T]]:
        """Every item of a listing, page by page."""
        found: list[T] = []
        cursor: str | None = None
        while True:
            page = yield from page_after(cursor)
            names = list(map(name, found[-1:] + page.items))
            if not all(map(operator.lt, names, names[1:])) or (page.cursor is not None and page.cursor == cursor):
                raise StoreProtocolError("the pages of the listing do not follow each other")
            found += page.items
            cursor = page.cursor
            if cursor is None:
                return found

    # Key/value.

    @operation
    def get(self, key: Name, default: Any = None) -> Steps[Any]:
        """The value of ``key``, or ``default`` if it is not there. A stored None is a value.

        >>> store.set("color", "green") and store.get("color")
        'green'
        >>> store.get("taste", "unknown")
        'unknown'
        """
        found = yield from calls.kv_get(self.namespace, key)
        return default if found is None else self._open(found.value, PairContext(self.namespace, key))

    @operation
    def entry(self, key: Name) -> Steps[Entry | None]:
        """The value of ``key`` with its ETag and expiry, or None if it is not there."""
        found = yield from calls.kv_get(self.namespace, key)
        if found is None:
            return None
        return Entry(self._open(found.value, PairContext(self.namespace, key)), found.etag, found.expires_ms)

    @operation
    def has(self, key: Name) -> Steps[bool]:
        """Whether ``key`` is there. Its value is not fetched."""
        return (yield from calls.kv_has(self.namespace, key))

    @operation
    def set(
        self,
        key: Name,
        value: Any,
        *,
        ttl: PositiveSeconds | Literal[Keep.KEEP] | None = KEEP,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Steps[str]:
        """Store ``value`` under ``key`` and return its ETag.

        ``ttl`` is seconds, None for never, or :data:`KEEP`. With ``if_match`` (an ETag, or ``"*"`` for any) or
        ``if_absent`` the value is stored only if the key still has that ETag, or is not there:
        :class:`StoreConflictError` if that does not hold.

        >>> etag = store.set("stock", 5)
        >>> store.entry("stock").etag == etag
        True
        >>> store.set("stock", 6, if_match="another")
        Traceback (most recent call last):
        rstore.StoreConflictError: ...
        """
        self._check_writable()
        value = self._seal(self._encode(value), PairContext(self.namespace, key))
        if if_match is not None and if_absent:
            raise StoreRequestError("give if_match or if_absent, not both", code="invalid-parameter")
        return (
            yield from calls.kv_put(
                self.namespace, key, value, ttl=_expiry(ttl), if_match=if_match, if_absent=if_absent
            )
        )

    @operation
    def delete(self, *keys: Name) -> Steps[None]:
        """Delete keys; those that are not there do no harm. A failure may leave some of them deleted and others not."""
        self._check_writable()
        names = list(dict.fromkeys(keys))
        for start in range(0, len(names), _KEYS_PER_BATCH):
            part = names[start : start + _KEYS_PER_BATCH]
            try:
                if len(part) > 1:
                    with _part_of_a_write(start):
                        yield from calls.kv_batch(self.namespace, deletes=part)
                    continue
            except StoreRequestError as error:
                # A backend in several parts may not be able to delete these keys in one step.
                if error.code != "batch-not-atomic":
                    raise
            for number, key in enumerate(part, start):
                with _part_of_a_write(number):
                    yield from calls.kv_delete(self.namespace, key)

    @operation
    def keys(self) -> Steps[list[str]]:
        """All keys, in order."""
        return (yield from self._names(functools.partial(calls.kv_list, self.namespace)))

    @operation
    def find(self, *pattern: str) -> Steps[list[tuple[str, Any]]]:
        """The pairs whose whole key matches a glob (``*``: any run, ``?``: one character), in order of key.

        Without a pattern: all pairs. With several: those that match any of them.

        >>> _ = store.set_many({"cat/1": "Tom", "cat/2": "Felix", "dog/1": "Rex"})
        >>> store.find("cat/?")
        [('cat/1', 'Tom'), ('cat/2', 'Felix')]
        """
        found: dict[str, Any] = {}
        for match in pattern or (None,):
            pairs = yield from self._listed(functools.partial(calls.kv_find, self.namespace, match), _key_of)
            for key, entry in pairs:
                found[key] = self._open(entry.value, PairContext(self.namespace, key))
        return sorted(found.items(), key=_key_of)

    @operation
    def count(self) -> Steps[int]:
        """How many keys there are. They are not fetched."""
        info = yield from calls.ns_info(self.namespace)
        return 0 if info is None else info.kv

    @operation
    def get_many(self, keys: Iterable[Name]) -> Steps[dict[str, Any]]:
        """The values of those ``keys`` that are there. Up to 1,000 keys are read as of one moment.

        >>> _ = store.set("cow/1", "Bella")
        >>> store.get_many(["cow/1", "cow/2"])
        {'cow/1': 'Bella'}
        """
        names = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        size = _KEYS_PER_BATCH
        start = 0
        while start < len(names):
            asked = names[start : start + size]
            try:
                batch = yield from calls.kv_batch(self.namespace, gets=asked)
            except StoreLimitError:
                # Large values: fewer of them fit into one answer.
                if len(asked) == 1:
                    raise
                size = len(asked) // 2
                continue
            for key, entry in batch.entries:
                found[key] = self._open(entry.value, PairContext(self.namespace, key))
            start += len(asked)
        return {key: found[key] for key in names if key in found}

    @operation
    def set_many(
        self, mapping: Mapping[Name, Any], *, ttl: PositiveSeconds | Literal[Keep.KEEP] | None = KEEP
    ) -> Steps[dict[str, str]]:
        """Store pairs, all or none, and return their ETags. ``ttl`` as in :meth:`set`."""
        self._check_writable()
        namespace = self.namespace
        sets = [(key, self._seal(self._encode(value), PairContext(namespace, key))) for key, value in mapping.items()]
        expiry = _expiry(ttl)
        return (yield from calls.kv_batch(namespace, sets=sets, ttl=expiry)).etags if sets else {}

    # Time series.

    @operation
    def range(
        self,
        key: Name,
        start: int | None = None,
        *,
        n: Count | None = None,
        end: int | None = None,
        freq: Step | None = None,
    ) -> Steps[list[tuple[int, Any]]]:
        """The points from ``start`` to ``end``, both inclusive, in order of time; an unknown series has none.

        ``freq`` keeps the first point and then each next one at least ``freq`` after the last kept; ``n`` is how many
        to return at most, counted from the first kept.

        >>> store.extend("temperature", (0, 20.5), (60, 20.7), (120, 21.0))
        >>> store.range("temperature", 60)
        [(60, 20.7), (120, 21.0)]
        >>> store.range("temperature", freq=100)
        [(0, 20.5), (120, 21.0)]
        """
        return (
            yield from calls.ts_range(
                self.namespace,
                key,
                functools.partial(self._unpacked, key),
                start=start,
                end=end,
                n=n,
                freq=self._frequency(freq),
            )
        )

    @operation
    def first(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The first point ``(t, value)``, or None if there is none."""
        return (yield from self._end_point(key, "first"))

    @operation
    def last(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The last point ``(t, value)``, or None if there is none."""
        return (yield from self._end_point(key, "last"))

    @operation
    def missing(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[list[int]]:
        """Those timestamps out of ``start, start+freq, …`` up to ``end`` that have no point.

        ``end`` defaults to the last point; ``freq`` to ``_freq`` of the class, and one of them is needed.

        >>> store.extend("pressure", (0, 1013.2), (60, 1013.1), (180, 1012.9))
        >>> store.missing("pressure", 0, 240, freq=60)
        [120, 240]
        """
        grid = self._grid(start, end, freq)
        return (yield from calls.ts_missing(self.namespace, key, *grid))

    @operation
    def iscomplete(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[bool]:
        """Whether no timestamp is :meth:`missing`."""
        grid = self._grid(start, end, freq)
        return (yield from calls.ts_complete(self.namespace, key, *grid))

    @operation
    def extend(self, key: Name, *points: tuple[int, Any]) -> Steps[None]:
        """Add points ``(t, value)`` in any order, all or none; a point replaces the one at its timestamp.

        A timestamp is an int64. Of two equal timestamps the last wins.
        """
        self._check_writable()
        yield from self._extended(key, self._packed(points))

    @operation
    def remove(self, *keys: Name, start: int | None = None, end: int | None = None) -> Steps[None]:
        """Remove the points from ``start`` to ``end``, both inclusive; without them all, and so the series."""
        self._check_writable()
        for number, key in enumerate(keys):
            with _part_of_a_write(number):
                yield from calls.ts_remove(self.namespace, key, start, end)

    @operation
    def timeseries(self) -> Steps[list[str]]:
        """The keys of all time series, in order."""
        return (yield from self._names(functools.partial(calls.ts_list, self.namespace)))

    def _frequency(self, freq: int | None) -> int | None:
        if freq is None and self._freq is not None:
            return check_int(self._freq, "_freq of the class", 1)
        return freq

    def _grid(self, start: int, end: int | None, freq: int | None) -> tuple[int, int | None, int]:
        step = self._frequency(freq)
        if step is None:
            raise StoreRequestError("freq is needed, here or as _freq of the class", code="invalid-parameter")
        return start, end, step

    def _end_point(self, key: str, which: Literal["first", "last"]) -> Steps[tuple[int, Any] | None]:
        found = yield from calls.ts_end(self.namespace, key, which)
        if found is None:
            return None
        t, value = found
        return t, self._open(value, PointContext(self.namespace, key, t))

    def _extended(self, key: str, points: Points) -> Steps[None]:
        """Add points whose values are encoded. They are sealed here."""
        if not len(points):
            return
        frames = b"".join(encode_stream(self._sealed_points(key, points)))
        taken = yield from calls.ts_extend(self.namespace, key, frames)
        if taken != len(points):
            raise _contradiction(f"the service says it took {taken} of {len(points)} points")

    def _packed(self, pairs: tuple[tuple[int, Any], ...]) -> Points:
        """The points of Python pairs: numbers as columns, anything else as encoded cells."""
        _check_pairs(pairs)
        try:
            if self._dumps_itself:
                packed = Points.from_values([(t, self._encode(value)) for t, value in pairs])
                if self._sealer is None:
                    _check_digits(packed)
                return packed
            return Points.from_pairs(list(pairs), self._encode)
        except InvalidPoints as error:
            place = (error.pointer or "/points").removeprefix("/").replace("/", "[", 1) + "]" * bool(error.pointer)
            problem = {} if error.pointer is None else {"pointer": error.pointer}
            raise StoreRequestError(f"{place}: {error}", code=error.code, problem=problem) from None

    def _sealed_points(self, key: str, points: Points) -> Points:
        """Points as they are sent: sealed, if there is a key."""
        if self._sealer is None:
            return points
        column = points.values
        plaintexts = list(map(pack, column)) if isinstance(column, Cells) else dump_numbers(column)
        envelopes = self._sealer.seal_points(self.namespace, key, points.timestamps, plaintexts)
        sealed = bytes((Encoding.SEALED,)) * len(envelopes)
        return Points(points.timestamps, Cells(sealed, array("I", map(len, envelopes)), b"".join(envelopes)))

    def _unpacked(self, key: str, packed: Points) -> list[tuple[int, Any]]:
        """The Python pairs in received points."""
        times, column = packed.timestamps.tolist(), packed.values
        trusted, spend = self._trust_pickle, _spending.get()
        found: Iterable[Any]
        if self._sealer is None and not self._loads_itself:
            if not isinstance(column, Cells):
                found = column.tolist()
            elif Encoding.PICKLE in column.encodings:
                found = [load(value, trusted=trusted, spend=spend) for value in column]
            else:
                spend(texts_memory(column.data, len(column)))
                found = [load(value, trusted=trusted) for value in column]
        elif self._sealer is not None and packed.encodings == {Encoding.SEALED} and isinstance(column, Cells):
            spend(len(column.data))
            plaintexts = self._sealer.open_points(self.namespace, key, times, column.parts())
            if self._loads_itself:
                found = [self._decode(unpack(plaintext)) for plaintext in plaintexts]
            else:
                found = load_plaintexts(plaintexts, trusted=trusted, spend=spend)
        else:
            cells = column if isinstance(column, Cells) else map(dump, column)
            contexts = map(functools.partial(PointContext, self.namespace, key), times)
            found = map(self._open, cells, contexts)
        return list(zip(times, found, strict=True))

    # Event sequences.

    @operation
    def apply(self, key: Name, changes: Mapping[Name, Any], t: int | None = None) -> Steps[Any]:
        """Record one event for each item in ``changes`` and return the new current state.

        A change is a value to set, ``(operator, value)``, or ``(operator,)`` for a unary one; see
        :data:`rstore.core.operators.OPERATORS`. Any other use of a function raises :class:`StoreRequestError`; a value
        with a function in its place is set by ``(operator.setitem, value)``. The events share one timestamp: ``t``
        (POSIX milliseconds; it may lie in the past), or now, but after the last one. If they cannot be applied, or
        ``t`` already has events, nothing is stored and :class:`StoreIntegrityError` is raised. Without changes nothing
        is recorded, and the answer is that of :meth:`current`: None if there is no such sequence.

        With a key the last event must open, and if it is more than ``_ahead_seconds_max`` ahead of this machine's
        clock, ``t`` is needed. An error whose ``done`` is True comes after the events were recorded.

        >>> import operator
        >>> store.apply("basket", {"apples": 3, "pears": 1})
        {'apples': 3, 'pears': 1}
        >>> store.apply("basket", {"apples": (operator.add, 2), "pears": (operator.delitem,)})
        {'apples': 5}
        """
        self._check_writable()
        parts = [self._change(item, change) for item, change in changes.items()]
        if not parts:
            return (yield from self._told(key, (yield from calls.es_current(self.namespace, key))))
        if self._sealer is None and all(part.value is None or part.value.encoding is Encoding.JSON for part in parts):
            try:
                state = yield from calls.es_apply(self.namespace, key, parts, timestamp=t)
            except StoreConflictError as error:
                # The service asks for a revision where the item's earlier values are for the client to fold.
                if error.code != "revision-conflict":
                    raise
            else:
                with _carried_out():
                    return self._folded(state, self._opened(key, state.events))
        return (yield from self._apply_checked(key, parts, t))

    @operation
    def current(self, key: Name, withtimestamp: bool = False) -> Steps[Any]:
        """The state as a dict in order of item, or None if there is no such sequence.

        With ``withtimestamp``: ``(t, state)``, ``t`` being the timestamp of the last event. With a key it is that of
        the last event that opens, and None if :meth:`prune` has left none.
        """
        state = yield from calls.es_current(self.namespace, key)
        return (yield from self._told(key, state, withtimestamp))

    @operation
    def past(self, key: Name, t: int, withtimestamp: bool = False) -> Steps[Any]:
        """The state as of ``t``, or None if there was no event until then. Otherwise like :meth:`current`."""
        state = yield from calls.es_past(self.namespace, key, t)
        return (yield from self._told(key, state, withtimestamp))

    @operation
    def events(
        self,
        key: Name,
        start: int | None = None,
        end: int | None = None,
        ops: Iterable[Callable[..., Any]] | None = None,
    ) -> Steps[list[tuple[int, str, Callable[..., Any], Any]] | None]:
        """The events ``(t, item, operator, value)`` from ``start`` to ``end``, in order of timestamp, then item.

        Only those of the operators ``ops``, if given. None if there is no such sequence. The value of a
        unary operator is None.
        """
        names = None
        if ops is not None:
            names = frozenset(_operator_name(function, f"ops[{index}]") for index, function in enumerate(ops))
        if names is not None and not names:
            return None if (yield from calls.es_current(self.namespace, key)) is None else []
        found = yield from calls.es_events(self.namespace, key, start=start, end=end, ops=names)
        if found is None:
            return None
        return [(t, item, OPERATORS[op], value) for t, item, op, value in self._opened(key, found)]

    @operation
    def prune(self, *keys: Name, remove: bool = True) -> Steps[None]:
        """Delete every event that the current state no longer needs; with ``remove`` also sequences without any item.

        Keys that are not there do no harm. The past of what is pruned is gone.
        """
        self._check_writable()
        for number, key in enumerate(keys):
            with _part_of_a_write(number):
                yield from calls.es_prune(self.namespace, key, remove=remove)

    @operation
    def eventsources(self) -> Steps[list[str]]:
        """The keys of all event sequences, in order."""
        return (yield from self._names(functools.partial(calls.es_list, self.namespace)))

    eventsequences = eventsources

    def _change(self, item: str, change: Any) -> _Change:
        """A change as given to :meth:`apply`, its value encoded."""
        function = change[0] if isinstance(change, tuple | list) and change else change
        if not callable(function):
            return _Change(item, "setitem", self._encode(change))
        op = _operator_name(function, "an operator in changes")
        operands = change[1:] if type(change) is tuple else None
        if op in UNARY:
            if operands is None or len(operands) > 1 or (operands and operands[0] is not None):
                raise StoreRequestError(f"in changes the operator {op} takes no value: ({op},)", code="invalid-body")
            return _Change(item, op, None)
        if operands is None or len(operands) != 1:
            raise StoreRequestError(f"in changes the operator {op} needs one value: ({op}, value)", code="invalid-body")
        return _Change(item, op, self._encode(operands[0]))

    def _opened(
        self, key: str, events: Iterable[Event], refused: bytes | None = None
    ) -> list[tuple[int, str, str, Any]]:
        """The events with their values as Python has them.

        The events of one apply have one timestamp, and of the apply with the id ``refused`` there are none. Events that
        contradict this are authentic all the same: the service has kept attempts that it said it refused.
        """
        namespace = self.namespace
        times: dict[bytes, int] = {}
        opened = []
        for t, item, op, stored in events:
            value, apply_id = self._opened_event(stored, EventContext(namespace, key, t, item, op))
            if apply_id is not None and times.setdefault(apply_id, t) != t:
                raise StoreProtocolError(
                    f"the service serves one apply at {times[apply_id]} and at {t}: it kept an attempt that it refused"
                )
            if apply_id is not None and apply_id == refused:
                raise _contradiction(f"the service refused this apply, and serves its events at {t} all the same")
            opened.append((t, item, op, value))
        return opened

    def _opened_event(self, value: Value | None, context: EventContext) -> tuple[Any, bytes | None]:
        """An event's value as Python has it, and its apply id, if it has one."""
        if self._sealer is None:
            return None if value is None else self._open(value, context), None
        if value is None:
            raise StoreDecryptionError(
                f"the event of {context.op} is not sealed, and a store with a key takes no event on trust"
            )
        _spending.get()(2 * len(value.data))
        opened, apply_id = self._sealer.open_event(value, context)
        if context.op not in UNARY:
            return self._decode(opened), apply_id
        if opened != _NOTHING:
            raise StoreDecryptionError(f"what is sealed for an event of {context.op} is not null")
        return None, apply_id

    def _folded(self, state: State, opened: list[tuple[int, str, str, Any]]) -> dict[str, Any]:
        """The state, in order of item: what the service folded, and its opened events, which are for the client."""
        if self._sealer is not None and state.items:
            raise StoreDecryptionError(
                "the sequence has items that are not sealed, and a store with a key takes no value on trust"
            )
        items = {item: self._decode(value) for item, value in state.items.items()}
        try:
            items |= fold(opened, self._bounds, _spending.get())
        except UnfoldableEvent as error:
            raise _unfoldable(error) from None
        return dict(sorted(items.items()))

    def _told(self, key: str, state: State | None, withtimestamp: bool = False) -> Steps[Any]:
        if state is None:
            return None
        opened = self._opened(key, state.events)
        folded = self._folded(state, opened)
        return ((yield from self._last_timestamp(key, state, opened)), folded) if withtimestamp else folded

    def _last_timestamp(
        self,
        key: str,
        state: State,
        opened: list[tuple[int, str, str, Any]],
        refused: bytes | None = None,
    ) -> Steps[int | None]:
        """The timestamp of a state's last event. With a key one that opens has it, whatever the service says.

        ``opened`` are the state's events. None if there is no event at all.
        """
        last = opened[-1][0] if opened else None
        if self._sealer is None or last == state.timestamp:
            return state.timestamp
        # The last event deleted an item, or one that came later has replaced it, or prune has erased it.
        for start in (state.timestamp, INT64_MIN if last is None else last + 1):
            found = yield from calls.es_events(self.namespace, key, start=start, end=state.timestamp)
            if found:
                return self._opened(key, found, refused)[-1][0]
        return last

    def _apply_checked(self, key: str, parts: list[_Change], timestamp: int | None) -> Steps[dict[str, Any]]:
        """Apply what the service cannot fold: check it here, and let nobody write between the check and the write.

        With a key, the timestamp is chosen here, because it is authenticated. A refusal is only the service's word,
        and it may keep what it refuses. So the same bytes are sent again, unless an event that opens is in the way of
        their timestamp; and all attempts have one apply id, by which readers see that they are one apply.
        """
        namespace, sealer = self.namespace, self._sealer
        apply_id = new_apply_id()
        now = time.time_ns() // 1_000_000
        t = now if timestamp is None and sealer is not None else timestamp
        sent, sealed_for = parts, None
        before: State | None = None
        for _ in range(_APPLY_ROUNDS_MAX):
            state = yield from calls.es_current(namespace, key)
            if state is not None and state == before:
                raise _contradiction(
                    "the service refused this apply as the sequence had changed, and serves it as before"
                )
            before = state
            opened = [] if state is None else self._opened(key, state.events, apply_id)
            folded = {} if state is None else self._folded(state, opened)
            if sealer is not None and state is not None and t is not None and (not opened or t <= state.timestamp):
                # The last event has to open, or whoever reads the others could not read what is added to them.
                last = yield from self._last_timestamp(key, state, opened, apply_id)
                if timestamp is None and last is not None and last >= t:
                    t = self._following(last, now)
            try:
                if state is not None and t is not None and t <= state.timestamp:
                    for part in parts:
                        history = yield from calls.es_events(namespace, key, item=part.item)
                        folded.pop(part.item, None)
                        changed = self._with_change(t, part, self._opened(key, history or [], apply_id))
                        folded |= fold(changed, self._bounds, _spending.get())
                else:
                    for part in parts:
                        apply_event(folded, part.item, part.op, self._operand(part), self._bounds, _spending.get())
            except UnfoldableEvent as error:
                # As the service does, this tells of the timestamp first.
                if timestamp is not None and (yield from calls.es_events(namespace, key, start=t, end=t)):
                    raise StoreIntegrityError("the timestamp already has events", code="timestamp-taken") from None
                raise _unfoldable(error) from None
            if sealer is not None and t is not None and t != sealed_for:
                sent, sealed_for = self._sealed(key, t, parts, apply_id), t
            try:
                yield from calls.es_apply(
                    namespace, key, sent, timestamp=t, revision=0 if state is None else state.revision
                )
            except StoreConflictError as error:
                if error.code != "revision-conflict":
                    raise
            except StoreIntegrityError as error:
                if sealer is not None and error.code == "timestamp-taken":
                    there = yield from calls.es_events(namespace, key, start=t, end=t)
                    if not self._opened(key, there or [], apply_id):
                        raise _contradiction(
                            "the service says that the timestamp has events, and serves none"
                        ) from None
                raise
            else:
                return dict(sorted(folded.items()))
        raise StoreConflictError(
            "other clients kept changing the sequence; nothing was stored", code="revision-conflict"
        )

    def _following(self, last: int, now: int) -> int:
        """The timestamp after the last event's."""
        if last == INT64_MAX:
            raise StoreIntegrityError(
                "the last event has the greatest possible timestamp, so none can follow it: give an earlier t",
                code="timestamp-taken",
            )
        if last - now > self._ahead_seconds_max * 1_000:
            raise StoreIntegrityError(
                f"the sequence's last event, at {last}, is more than {self._ahead_seconds_max:.0f} seconds ahead of"
                " this machine's clock: give the t to apply at"
            )
        return last + 1

    def _sealed(self, key: str, t: int, parts: list[_Change], apply_id: bytes) -> list[_Change]:
        """The changes with their values sealed for ``t``."""
        assert self._sealer is not None
        seal, namespace = self._sealer.seal_event, self.namespace
        return [
            part._replace(
                value=seal(part.value or _NOTHING, EventContext(namespace, key, t, part.item, part.op), apply_id)
            )
            for part in parts
        ]

    def _operand(self, part: _Change) -> Any:
        """A change's value as it will be read, which is never the caller's own object."""
        return None if part.value is None else self._decode(part.value)

    def _with_change(
        self, t: int, part: _Change, history: list[tuple[int, str, str, Any]]
    ) -> list[tuple[int, str, str, Any]]:
        """An item's history with a change at ``t``."""
        times = [event[0] for event in history]
        at = bisect.bisect(times, t)
        return [*history[:at], (t, part.item, part.op, self._operand(part)), *history[at:]]

    # Keys.

    @operation
    def rotate(self, *, check: bool = False, progress: Callable[[Rotation], object] | None = None) -> Steps[Rotation]:
        """Seal anew, with the first key, every value of the namespace that is sealed under another one.

        Others may read and write meanwhile: nothing of theirs is overwritten. If it is interrupted, run it again:
        what is done costs no more than to read it. A value that cannot be opened stops nothing; :class:`Rotation`
        names it. With ``check`` nothing is opened or written, only counted, for which a frozen store will do.
        ``progress`` is called after each page with the counts so far.
        """
        if not check:
            self._check_writable()
        if self._sealer is None:
            raise StoreRequestError(
                "a rotation needs keys: open the store with key=[new, old]", code="invalid-parameter"
            )
        return (yield from rotate(self.namespace, self._sealer, check=check, progress=progress))

    # Namespaces.

    @operation
    def namespaces(self) -> Steps[list[str]]:
        """The names of the namespaces that the token reaches, in order."""
        return (yield from self._names(calls.ns_list))

    @operation
    def discard(self) -> Steps[None]:
        """Delete the namespace and everything in it. The next write creates it again."""
        self._check_writable()
        yield from calls.ns_discard(self.namespace)

    # Tokens.

    @operation
    def tokens(self) -> Steps[list[Token]]:
        """Every access token, without its text. This and the next three take a token that may administer everything."""
        return (yield from self._listed(calls.token_list, _id_of))

    @operation
    def create_token(
        self,
        namespaces: str | Iterable[str],
        access: AccessLevel,
        *,
        label: str = "",
        lifetime: PositiveSeconds | None = None,
    ) -> Steps[NewToken]:
        """Make an access token for namespaces (names or globs), to last ``lifetime`` seconds or until it is revoked.

        ``access`` ``metrics`` reads the service's metrics and nothing else; it takes the namespace ``*``.
        Its ``text`` is what to keep. This is sent once and never again: after a lost answer look at ``tokens()``.
        """
        self._check_writable()
        globs = [namespaces] if isinstance(namespaces, str) else list(namespaces)
        return (yield from calls.token_create(globs, access, label=label, lifetime_seconds=lifetime))

    @operation
    def rotate_token(self, token_id: Name, *, grace: Seconds = 0) -> Steps[NewToken]:
        """Give a token another text; the one that it has counts for ``grace`` more seconds. It is sent once."""
        self._check_writable()
        return (yield from calls.token_rotate(token_id, grace_seconds=grace))

    @operation
    def revoke_token(self, token_id: Name) -> Steps[None]:
        """End a token; StoreNotFoundError if it is not there. Services forget it within seconds."""
        self._check_writable()
        yield from calls.token_revoke(token_id)


def _here() -> _Home:
    """This process and the running event loop."""
    try:
        return os.getpid(), asyncio.get_running_loop()
    except RuntimeError:
        raise StoreError("an AsyncStore is awaited under an event loop of asyncio, and none is running here") from None


def _environment(name: str) -> str | None:
    """A variable of the environment. A name for ``os.environ.get`` would show all of it in a traceback."""
    return os.environ.get(name)


def _chosen_namespace(name: Any) -> str:
    if name is None:
        name = _environment("RSTORE_NAMESPACE") or _DEFAULT_NAMESPACE
    if not isinstance(name, str):
        refuse("the namespace", "a str", name, "invalid-namespace")
    try:
        return check_namespace(str.__str__(name))
    except InvalidName as error:
        raise StoreRequestError(str(error), code="invalid-namespace") from None


def _id_of(token: Token) -> str:
    return token.id


def _key_of(pair: tuple[str, Any]) -> str:
    return pair[0]


@contextlib.contextmanager
def _carried_out() -> Iterator[None]:
    """What fails in here fails after the write was carried out, and says so."""
    try:
        yield
    except StoreError as error:
        error.done = True
        raise
    except Exception as error:
        # A `_load` of a subclass may raise anything.
        failure = StoreEncodingError(f"the answer could not be decoded: {type(error).__name__}")
        failure.done = True
        raise failure from error


@contextlib.contextmanager
def _part_of_a_write(written: int) -> Iterator[None]:
    """One of several writes of one call. If it fails after some have ``written``, the error says so."""
    try:
        yield
    except StoreError as error:
        error.outcome_unknown |= written > 0
        raise


def _contradiction(text: str) -> StoreProtocolError:
    """The service contradicts itself about a write, so nobody knows what became of it."""
    error = StoreProtocolError(text)
    error.outcome_unknown = True
    return error


def _operator_name(function: Callable[..., Any], what: str) -> str:
    try:
        return OPERATOR_NAMES[function]
    except (KeyError, TypeError):  # It is none of them, or not even hashable.
        raise StoreRequestError(
            f"{what} is one of these functions of the module operator: {', '.join(OPERATORS)};"
            " a value that has another function in this place is set by (operator.setitem, value)",
            code="invalid-parameter",
        ) from None


def _unfoldable(error: UnfoldableEvent) -> StoreIntegrityError:
    return StoreIntegrityError(str(error), code="unfoldable-event")


def _check_pairs(points: tuple[Any, ...]) -> None:
    """Raise unless these are pairs. There may be a million, so only where one is wrong each is looked at."""
    if set(map(type, points)) <= {tuple, list} and set(map(len, points)) <= {2}:
        return
    for index, point in enumerate(points):
        wrong = "" if isinstance(point, tuple | list) else f"is of type {type(point).__name__}"
        if wrong or len(point) != 2:
            raise StoreRequestError(
                f"points are (timestamp, value) pairs; points[{index}] {wrong or f'has {len(point)} members'}",
                code="invalid-body",
            )


def _check_digits(points: Points) -> None:
    """Raise for a bare number that a `_dump` wrote as JSON, and of which the service would keep fewer digits."""
    for t, (encoding, data) in points:
        try:
            exact = encoding is not Encoding.JSON or (stored := stored_text(data)) == data or _equal(stored, data)
        except InvalidJSON:
            exact = False
        if not exact:
            raise StoreEncodingError(
                f"_dump returned a number at timestamp {t} that neither an int nor a float holds; "
                "let it return a JSON string or list with the digits in it"
            )


def _equal(one: bytes, other: bytes) -> bool:
    """Whether two JSON numbers are equal, digit for digit."""
    return Decimal(one.decode()) == Decimal(other.decode())


# --- Store -------------------------------------------------------------------------------------------------


class Store(_Operations[httpx2.BaseTransport]):
    """A store of key/value pairs, time series and event sequences in a namespace of an rstore service.

    ``dsn`` is the service's URL (default: ``RSTORE_URL``, then ``http://127.0.0.1:8000``), ``namespace`` one name
    (``_namespace`` of the class, ``RSTORE_NAMESPACE``, ``default``). With ``key`` (``_key``, ``RSTORE_KEY``; see
    :func:`rstore.generate_key`), or a list of keys of which the first seals, values are encrypted before they are sent,
    and nothing else is accepted. A ``frozen`` store cannot write. ``sealed_only`` True makes the namespace refuse, when
    the store is opened and from then on, whatever is not sealed, from anybody; False lifts that; None leaves it as it
    is. ``token`` (``RSTORE_TOKEN``) is the bearer token.

    ``accept_fernet`` opens tokens of rlib-store too. ``trust_pickle`` writes values of types beyond the harmless ones,
    and loads any pickle, which runs whatever code is in it: that of whoever can write to the store. ``timeout`` is how
    many seconds the service may be silent, ``retries`` how often a call is sent again when the service is away for a
    moment; no attempt begins later than ``deadline`` seconds after the first. Where that was in vain,
    ``outcome_unknown`` of the error says whether a write may have happened. ``answer_bytes_max`` is how many bytes of
    memory the answers to one call may take: more raises :class:`~rstore.StoreProtocolError`.
    ``verify`` is a CA file (``RSTORE_CA``), an ``ssl.SSLContext``, or False; ``cert`` (``RSTORE_CERT``) a PEM file of
    a client certificate and its key, or a pair of two. Proxies of the environment are not used, pass a ``transport``
    (``httpx2.HTTPTransport(proxy=…)``) for that.

    Everything that goes wrong is a :class:`~rstore.StoreError`. A store may be shared between threads, and with
    processes that are forked: each of them connects with its first call.

    >>> with Store(url, "zoo", frozen=False) as zoo:
    ...     zoo["lion"] = {"age": 7}
    ...     zoo["lion"]
    {'age': 7}
    """

    _transport_type = httpx2.BaseTransport

    def open(self) -> Store:
        """Connect. Creates the namespace unless frozen; raises :class:`StoreNotAvailableError` if that fails."""
        if self._tls is None:
            self._connect()
            try:
                self._run(self._opening())
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Close the connections. The store may be opened again; closing twice does no harm."""
        home = (os.getpid(), None)
        self._tls = None
        self._leave_inherited(home)
        transport = self._connected.pop(home, None)
        if transport is not None and transport is not self._given_transport:
            transport.close()

    def __enter__(self) -> Store:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Sending.

    def _run(self, steps: Steps[T]) -> T:
        """Carry out an operation: send each call that it yields, and give it the answer or the error."""
        budget = Budget(self._answer_bytes_max, self._operation_seconds_max)
        _spending.set(budget.spend)
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._send(call, budget)
                except StoreError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, call: Call[T], budget: Budget) -> T:
        if call.own_budget:
            budget = Budget(self._answer_bytes_max, self._operation_seconds_max)
        attempts = Attempts(call, self._retries, self._deadline)
        while True:
            try:
                return self._exchange(call, budget)
            except TryAgain as failure:
                pause = attempts.pause_seconds(failure)
            except StoreError as error:
                raise attempts.conclude(error) from error.__cause__
            time.sleep(pause)

    def _transport(self) -> httpx2.BaseTransport:
        """A new transport for this process."""
        home = (os.getpid(), None)
        made = self._new_transport(home, functools.partial(blocking_transport, seconds_max=self._operation_seconds_max))
        transport: httpx2.BaseTransport = self._connected.setdefault(home, made)
        if transport is not made:  # Another thread was faster, and this one has no connections yet.
            made.close()
        return transport

    def _exchange(self, call: Call[T], budget: Budget) -> T:
        transport = self._connected.get((os.getpid(), None)) or self._transport()
        request = self._service.request(call)
        with translated():
            response = transport.handle_request(request)
            try:
                reader = budget.reader(call, response)
                for chunk in response.stream:  # type: ignore[union-attr]
                    budget.receive(len(chunk))
                    reader.feed(chunk)
            finally:
                response.close()
        return reader.finish()

    # The dict-like face.

    def __getitem__(self, key: str) -> Any:
        """The value of ``key``; ``KeyError`` if it is not there."""
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        """Delete ``key``; ``KeyError`` if it is not there."""
        self._check_writable()
        if not self._run(iter(calls.kv_delete_present(self.namespace, check_name(key, "key")))):
            raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        return self.has(key)

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


# --- AsyncStore --------------------------------------------------------------------------------------------


class AsyncStore(_Operations[httpx2.AsyncBaseTransport]):
    """:class:`Store`, awaited: the same arguments and the same methods.

    It may be used under several event loops of asyncio: it connects under each. The dict-like face is left out but for
    ``async for key in store``; ``transport`` is an asynchronous one, for instance ``httpx2.ASGITransport(app)`` to
    reach a service in the same process.
    """

    _transport_type = httpx2.AsyncBaseTransport

    async def open(self) -> AsyncStore:
        """Connect. Creates the namespace unless frozen; raises :class:`StoreNotAvailableError` if that fails."""
        if self._tls is None:
            self._connect()
            try:
                await self._run(self._opening())
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Close the connections. The store may be opened again; closing twice does no harm."""
        home = _here()
        self._tls = None
        self._leave_inherited(home)
        connected = self._connected.pop(home, None)
        # Another event loop closes by itself what is dropped here.
        self._connected.clear()
        if connected is not None:
            await connected.close()

    async def __aenter__(self) -> AsyncStore:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        for key in await self.keys():
            yield key

    # Sending: as in Store, awaited.

    async def _run(self, steps: Steps[T]) -> T:
        """Carry out an operation: send each call that it yields, and give it the answer or the error."""
        budget = Budget(self._answer_bytes_max, self._operation_seconds_max)
        _spending.set(budget.spend)
        try:
            call = next(steps)
            while True:
                try:
                    answer = await self._send(call, budget)
                except StoreError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, call: Call[T], budget: Budget) -> T:
        if call.own_budget:
            budget = Budget(self._answer_bytes_max, self._operation_seconds_max)
        attempts = Attempts(call, self._retries, self._deadline)
        while True:
            try:
                connected = self._connected.get(_here()) or await self._connection()
                async with asyncio.timeout(budget.seconds_left()):
                    return await self._exchange(call, budget, connected.transport)
            except TimeoutError:
                raise attempts.conclude(StoreNotAvailableError(TOO_SLOW)) from None
            except TryAgain as failure:
                pause = attempts.pause_seconds(failure)
            except StoreError as error:
                raise attempts.conclude(error) from error.__cause__
            await asyncio.sleep(pause)

    async def _connection(self) -> Awaited:
        """New connections for this process and event loop."""
        home = _here()
        if self._given_transport is None:
            for process, loop in list(self._connected):
                if loop is not None and loop.is_closed():
                    self._connected.pop((process, loop), None)
        transport = self._new_transport(home, awaited_transport)
        connected = await Awaited(transport, owned=self._given_transport is None).begin()
        self._connected[home] = connected
        return connected

    async def _exchange(self, call: Call[T], budget: Budget, transport: httpx2.AsyncBaseTransport) -> T:
        request = self._service.request(call)
        with translated():
            response = await transport.handle_async_request(request)
            try:
                reader = budget.reader(call, response)
                async for chunk in response.stream:  # type: ignore[union-attr]
                    budget.receive(len(chunk))
                    reader.feed(chunk)
            finally:
                await response.aclose()
        return reader.finish()


def _constructor(kind: type) -> Callable[..., None]:
    """The constructor under the name of the class, which Python names for a wrong call."""
    common = _Operations.__init__
    made = types.FunctionType(common.__code__, common.__globals__, "__init__", common.__defaults__)
    functools.update_wrapper(made, common)
    made.__kwdefaults__ = common.__kwdefaults__
    made.__qualname__ = kind.__name__
    return made


for _kind in (Store, AsyncStore):
    setattr(_kind, "__init__", _constructor(_kind))  # noqa: B010 (a type checker would look at what it returns)

_ABSENT: Final = object()
_NOT_OPEN: Final = "the store is not open: use `with Store(…) as store:` (`async with AsyncStore(…)`), or call open()"
