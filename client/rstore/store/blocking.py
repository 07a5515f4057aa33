"""``Store``: operations that are carried out while the caller waits."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx2

from rstore import calls
from rstore.calls import Call, Steps, TryAgain
from rstore.calls.arguments import check_name
from rstore.core.errors import StoreError
from rstore.store.operation import Blocking
from rstore.store.operations import Operations
from rstore.transport.attempts import translated
from rstore.transport.budget import Budget
from rstore.transport.connections import blocking_transport
from rstore.transport.running import Exchange, carried_out

__all__ = ["Store"]

T = TypeVar("T")
_ABSENT: Final = object()


class Store(Operations[httpx2.BaseTransport], Blocking):
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

    def _run(self, steps: Steps[T]) -> T:
        running = carried_out(steps, self._bounds)
        try:
            step = next(running)
            while True:
                if not isinstance(step, Exchange):
                    time.sleep(step)
                    step = next(running)
                    continue
                try:
                    answer = self._exchange(step.call, step.budget)
                except (StoreError, TryAgain) as error:
                    step = running.throw(error)
                else:
                    step = running.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

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
        if not self._run(iter(calls.kv.delete_present(self.namespace, check_name(key, "key")))):
            raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        return self.has(key)

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())
