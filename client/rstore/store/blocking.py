"""``Store``: the caller waits for each operation."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx2

from rstore import calls
from rstore.calls import Call, Steps, TryAgain
from rstore.calls.arguments import check_name
from rstore.core.errors import StoreError
from rstore.store.bare import open_unasked
from rstore.store.operation import Blocking
from rstore.store.operations import Operations
from rstore.transport.attempts import translated
from rstore.transport.budget import Budget
from rstore.transport.connections import blocking_transport
from rstore.transport.running import carried_out

T = TypeVar("T")
_ABSENT: Final = object()


class Store(Operations[httpx2.BaseTransport], Blocking):
    """A namespace of an rstore service: key/value pairs, time series and event sequences.

    A store may be shared between threads, and with forked processes: each process connects with its first call. The
    environment's proxies are not used.

    Every method raises a :class:`~rstore.StoreError` if it fails, of one of these types unless its own docstring says
    more: :class:`~rstore.StoreNotAvailableError` if the service cannot be reached,
    :class:`~rstore.StoreAuthenticationError` or :class:`~rstore.StoreAccessError` if the service refuses the token,
    :class:`~rstore.StoreRequestError` for a wrong argument, :class:`~rstore.StoreLimitError` beyond a limit of the
    service, and :class:`~rstore.StoreProtocolError` for an answer that no rstore service gives. If the call was a
    write, ``outcome_unknown`` of the error says whether it may have been carried out.

    Args:
        dsn: The URL of the service. None: ``RSTORE_URL``, otherwise ``http://127.0.0.1:8000``.
        namespace: The namespace, 1 to 128 of ``A-Z a-z 0-9 . _ -``. None: ``_namespace`` of the class, otherwise
            ``RSTORE_NAMESPACE``, otherwise ``default``.
        key: The key that seals and opens values, see :func:`rstore.generate_key`; or a list of keys, of which the
            first seals and all open. The store then reads nothing that is not sealed. None: ``_key`` of the class,
            otherwise ``RSTORE_KEY``, otherwise values are not sealed.
        frozen: Whether to refuse writes. A store that is not frozen creates its namespace when it is opened.
        sealed_only: True: from now on the namespace refuses values that are not sealed, from every client. False: it
            takes them again. None: this stays as it is.
        token: The bearer token. None: ``RSTORE_TOKEN``, otherwise no token.
        accept_fernet: Whether to open the Fernet tokens of rlib-store too.
        trust_pickle: Whether to pickle objects of any type, and to load any pickle. Loading runs the code that the
            pickle names, so trust everybody who can write to the store.
        timeout: For how many seconds the service may be silent; more than 0, at most 2,000,000.
        retries: How many more attempts a call gets while the service is not available; 0 or more.
        deadline: The seconds after the first attempt of a call in which another one may begin; 0 or more.
        answer_bytes_max: The bytes of memory that the answers to one method may take, 1 MiB or more.
        verify: What verifies the service under TLS: a PEM file of certificates, an ``ssl.SSLContext``, True for the
            system's certificates, or False for none. True means ``RSTORE_CA`` if that is set.
        cert: What proves the client to the service: a PEM file of a certificate and its key, or the pair of two files.
            None: ``RSTORE_CERT``, otherwise nothing.
        transport: The transport of httpx2 to send with, for example ``httpx2.HTTPTransport(proxy=…)``. None: one of
            the store's own.

    Raises:
        StoreRequestError: An argument is wrong, or a variable of the environment is set and empty.

    Example:
        >>> with Store(url, "zoo", frozen=False) as zoo:
        ...     zoo["lion"] = {"age": 7}
        ...     zoo["lion"]
        ...     zoo.discard()
        {'age': 7}
    """

    _transport_type = httpx2.BaseTransport

    def open(self) -> Self:
        """Connect, and return the store. It creates the namespace unless the store is frozen.

        ``with`` calls this. Opening a store that is open does nothing.

        Returns:
            The store itself.

        Raises:
            StoreNotAvailableError: The service cannot be reached, or the store is frozen and its namespace does not
                exist.

        Example:
            >>> zoo = Store(url, "zoo", frozen=False).open()
            >>> zoo.discard()
            >>> zoo.close()
        """
        if self._tls is None:
            open_unasked(self)
            try:
                self._run(self._opening())
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Close the connections. The store may be opened again, and closing it twice does no harm.

        ``with`` calls this at its end.

        Example:
            >>> zoo = Store(url, store.namespace).open()
            >>> zoo.close()
            >>> zoo.has("lion")
            Traceback (most recent call last):
            rstore.StoreError: the store is not open: ...
        """
        home = (os.getpid(), None)
        self._tls = None
        self._leave_inherited(home)
        transport = self._connected.pop(home, None)
        if transport is not None and transport is not self._given_transport:
            transport.close()

    def __enter__(self) -> Self:
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
                if step.pause_seconds:
                    time.sleep(step.pause_seconds)
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
        if transport is not made:
            # Another thread was faster. This transport has no connections yet.
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

    def __getitem__(self, key: str) -> Any:
        """The value of ``key``, as :meth:`get` returns it.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Raises:
            KeyError: The key is not there.

        Example:
            >>> store["color"]
            Traceback (most recent call last):
            KeyError: 'color'
        """
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        """Store ``value`` under ``key``, as :meth:`set` does.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            value: Plain JSON data, ``bytes``, or an object of another harmless type.

        Example:
            >>> store["color"] = "green"
            >>> store["color"]
            'green'
        """
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        """Delete ``key``.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Raises:
            KeyError: The key is not there.

        Example:
            >>> store["color"] = "green"
            >>> del store["color"]
            >>> "color" in store
            False
        """
        self._check_writable()
        if not self._run(iter(calls.kv.delete_present(self.namespace, check_name(key, "key")))):
            raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        """Whether ``key`` is there, as :meth:`has` says.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Example:
            >>> "color" in store
            False
        """
        return self.has(key)

    def __len__(self) -> int:
        """The number of keys, as :meth:`count` returns it.

        Example:
            >>> len(store)
            0
        """
        return self.count()

    def __iter__(self) -> Iterator[str]:
        """All keys in order, as :meth:`keys` returns them.

        Example:
            >>> store["color"] = "green"
            >>> list(store)
            ['color']
        """
        return iter(self.keys())
