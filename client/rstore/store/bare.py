"""A store without operations: the settings, codec and connections that every operation uses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from rstore import calls
from rstore.calls import Call, Steps
from rstore.calls.arguments import check_environment, check_flag, check_int, check_seconds, refuse
from rstore.calls.listings import Page, check_follows
from rstore.codec.codec import Codec
from rstore.codec.values import dump, load
from rstore.core.bounds import Bounds
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import (
    FrozenStoreError,
    StoreError,
    StoreNotAvailableError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.names import InvalidName, check_namespace
from rstore.sealing import Sealer
from rstore.transport.address import Certificate, Service
from rstore.transport.connections import leave_to_parent
from rstore.transport.running import OperationBounds

TransportT = TypeVar("TransportT")
T = TypeVar("T")
SealingKeys: TypeAlias = "str | bytes | Sequence[str | bytes]"
Home: TypeAlias = "tuple[int, asyncio.AbstractEventLoop | None]"
"""Where connections can be used: in one process, and if they are awaited, under one event loop."""

_NOT_OPEN: Final = "the store is not open: use `with Store(…) as store:` (`async with AsyncStore(…)`), or call open()"
_ANSWER_BYTES_MIN: Final = 2**20
_DEFAULT_URL: Final = "http://127.0.0.1:8000"
_DEFAULT_NAMESPACE: Final = "default"


class BareStore(Generic[TransportT]):
    """A store without operations."""

    _namespace: str | None = None
    _transport_type: type[TransportT]
    _key: SealingKeys | None = None
    _freq: int | None = None
    _operation_seconds_max: float = 600.0
    _ahead_seconds_max: float = 86_400.0

    def __init__(
        self,
        dsn: str | None = None,
        namespace: str | None = None,
        key: SealingKeys | None = None,
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
        # A traceback may show every variable, but not what an iterator holds.
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
        accept_fernet = check_flag(accept_fernet, "accept_fernet")
        # The sealer refuses an empty key and an empty list: a caller who gives one does not mean to write unsealed.
        sealer = Sealer(next(secrets), accept_fernet=accept_fernet) if sealed else None
        self._trust_pickle = check_flag(trust_pickle, "trust_pickle")
        cls = type(self)
        self._codec = Codec(
            sealer,
            trusted=self._trust_pickle,
            own_dump=None if cls._dump is BareStore._dump else self._dump,
            own_load=None if cls._load is BareStore._load else self._load,
        )
        answer_bytes_max = check_int(answer_bytes_max, "answer_bytes_max", _ANSWER_BYTES_MIN)
        self._bounds = OperationBounds(
            answer_bytes_max=answer_bytes_max,
            operation_seconds_max=self._operation_seconds_max,
            retries=check_int(retries, "retries", 0),
            attempts_seconds_max=check_seconds(deadline, "deadline"),
        )
        # A member of a list takes eight bytes.
        self._folding_bounds = Bounds(length_max=min(Bounds().length_max, answer_bytes_max // 8))
        if not isinstance(transport, self._transport_type | None):
            refuse("transport", f"an httpx2.{self._transport_type.__name__}", transport)
        self._given_transport = transport
        self._given_process = os.getpid()
        # None as long as the store is not open.
        self._tls: ssl.SSLContext | bool | None = None
        self._connected: dict[Home, Any] = {}

    # Python shows this name to whoever calls the constructor of a store wrongly. The name of this class would puzzle.
    __init__.__qualname__ = "__init__"

    def __repr__(self) -> str:
        # A traceback shows the store whose constructor failed, too.
        if "_codec" not in vars(self):
            return super().__repr__()
        traits = ", frozen" * self.frozen + ", sealed" * (self._codec.sealer is not None)
        return f"<{type(self).__name__} {self._service.url} {self.namespace}{traits}>"

    def _dump(self, value: Any) -> str | bytes | Value:
        """Encode a value. A subclass may return ``str`` or ``bytes`` instead; every client reads JSON text."""
        return dump(value, trusted=self._trust_pickle)

    def _load(self, data: str | bytes) -> Any:
        """Decode what ``_dump`` returned: a ``str`` if it is JSON, otherwise ``bytes``. A subclass may override it."""
        return load(Value(Encoding.JSON, data.encode()), trusted=False) if isinstance(data, str) else data

    def _new_transport(self, home: Home, make: Callable[[ssl.SSLContext | bool], TransportT]) -> TransportT:
        """The transport for a process, or an event loop, that has not sent anything yet."""
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

    def _leave_inherited(self, home: Home) -> None:
        for other in list(self._connected):
            if other[0] != home[0]:
                leave_to_parent(self._connected.pop(other, None))

    def _check_writable(self) -> None:
        if self.frozen:
            raise FrozenStoreError("the store is frozen; open it with frozen=False to write")

    def _opening(self) -> Steps[None]:
        if not self.frozen:
            yield from calls.namespaces.create(self.namespace, sealed_only=self._sealed_only)
        elif (yield from calls.namespaces.info(self.namespace)) is None:
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
            check_follows(page, names, cursor)
            found += page.items
            cursor = page.cursor
            if cursor is None:
                return found


def open_unasked(store: BareStore[Any]) -> None:
    """Open the store without a request. Each process and each event loop connects when it makes a call."""
    store._tls = store._service.tls()  # noqa: SLF001


def contradiction(text: str) -> StoreProtocolError:
    """The error for a service that contradicts itself about a write, so its outcome is unknown."""
    error = StoreProtocolError(text)
    error.outcome_unknown = True
    return error


@contextlib.contextmanager
def part_of_a_write(written: int) -> Iterator[None]:
    """Carry out one of several writes of one call. If it fails and others were ``written``, the error says so."""
    try:
        yield
    except StoreError as error:
        error.outcome_unknown |= written > 0
        raise


def _environment(name: str) -> str | None:
    """A variable of the environment. A local ``os.environ`` would show the whole of it in a traceback."""
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
