"""What the suite runs over: one face (the SDK's methods, awaited) for the engine, for Store and for AsyncStore.

A *driver* opens *subjects*. Its ``features`` say what it has, so that a test names a feature and never a driver:

- ``client``: there is an SDK (frozen stores, class attributes, values beyond JSON folded on the client);
- ``wire``: requests can be sent beside it, through ``driver.http``;
- ``sealing``: it can be given a key;
- ``mapping``: it has the dict-like face.

A *case* is a backend, a driver and whether values are sealed; it adds the features ``sealed`` or ``plain``.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import operator
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar, NamedTuple, Self

import anyio.to_thread
import httpx2
import uvicorn

from rstore import KEEP, AsyncStore, Store
from rstore.codec.values import dump, load
from rstore.core.encodings import Value
from rstore.core.errors import PROBLEMS
from rstore.core.names import check_key, check_namespace
from rstore.core.points import Points
from rstored.app import create_app
from rstored.backends import backend_class
from rstored.engine.engine import Engine
from rstored.engine.model import KEEP as ENGINE_KEEP
from rstored.engine.model import BatchDelete, BatchGet, BatchSet, Change, Condition, Entry, Expiry
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.settings import load_settings

KEY = "sLxn7jJIZn1fQWxTTLpXZCNBFpYQmU1KZBLHsRT7Bb0="


class Deployment:
    """A store of one backend, and the service processes on it, each started when it is first asked for."""

    def __init__(self, dsn: str, token: str | None, serve: Callable[..., Any]) -> None:
        self.dsn = dsn
        # With it the store is closed to all who do not send it; without one it is open.
        self.token = token
        self._serve = serve
        self._services: list[Any] = []

    def make_app(self) -> Any:
        """An ASGI application on it, to be started and stopped on one event loop."""
        return create_app(load_settings(dsn=self.dsn, admin_token=self.token))

    @functools.cached_property
    def url(self) -> str:
        """Where a service process answers."""
        return self._started().url

    @functools.cached_property
    def second_url(self) -> str:
        """Where another process on the same store answers."""
        return self._started().url

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that this process and the services took so far; what else the machine does changes it little."""
        return time.process_time() + sum(service.cpu_seconds for service in self._services)

    def _started(self) -> Any:
        self._services.append(self._serve(self.dsn, env=self._environment))
        return self._services[-1]

    @property
    def headers(self) -> dict[str, str]:
        """What a request carries that is sent beside the SDK."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def _environment(self) -> dict[str, str]:
        return {"RSTORED_ADMIN_TOKEN": self.token} if self.token else {}


class Driver(abc.ABC):
    """Opens subjects on one deployment; they are closed when ``stack`` is."""

    features: ClassVar[frozenset[str]]
    # What it runs over; None is all.
    backends: ClassVar[frozenset[str] | None] = None
    http: httpx2.AsyncClient

    def __init__(self, stack: AsyncExitStack, deployment: Deployment) -> None:
        self.stack = stack
        self.deployment = deployment

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[Self]:
        """The driver for one test, at whose end what it opened is closed."""
        whole = self.stack
        try:
            async with AsyncExitStack() as self.stack:
                yield self
        finally:
            self.stack = whole

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect."""

    @abc.abstractmethod
    async def open(self, namespace: str | None, **options: Any) -> Any:
        """A subject on a namespace. ``attributes`` makes it one of a subclass; ``like`` takes a subject's key."""

    def options(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments and class attributes."""
        attributes = options.pop("attributes", {})
        like = options.pop("like", None)
        if like is not None:
            options.setdefault("key", like.key)
        return {"frozen": False, **options}, attributes


class Conveniences:
    """What the tests use beyond the SDK's methods."""

    namespace: str
    key: str | None = None

    async def in_parallel(self, calls: list[tuple[Any, ...]]) -> None:
        """Make calls ``(method, *arguments)``, 32 at a time."""
        for start in range(0, len(calls), 32):
            await asyncio.gather(*[getattr(self, name)(*rest) for name, *rest in calls[start : start + 32]])

    async def in_sequence(self, calls: list[tuple[Any, ...]]) -> None:
        """Make calls ``(method, *arguments)``, one after the other."""
        for name, *rest in calls:
            await getattr(self, name)(*rest)


# --- the engine --------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The Python value of a stored one (of a number column the number itself)."""
    return load(value, trusted=False) if isinstance(value, Value) else value


def translated(method: Any) -> Any:
    """Raise a problem as the exception that the SDK has for it."""

    @functools.wraps(method)
    async def call(*arguments: Any, **options: Any) -> Any:
        try:
            return await method(*arguments, **options)
        except Problem as problem:
            row = PROBLEMS[problem.code]
            raise row.exception(problem.detail, code=problem.code, status=row.status) from None

    return call


def int64(number: Any) -> Any:
    """What the API checks before it calls the engine."""
    if number is not None and (type(number) is not int or not -(2**63) <= number < 2**63):
        raise ValueError("not an int64")
    return number


class EngineSubject(Conveniences):
    """The SDK's methods with plain values, straight on the engine. It checks what the API would."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.engine = engine
        self.namespace = check_namespace(namespace)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return translated(found) if asyncio.iscoroutinefunction(found) and name[0] != "_" else found

    # Key/value.

    async def get(self, key, default=None):
        entry = await self.engine.kv.get(self.namespace, check_key(key))
        return default if entry is None else plain(entry.value)

    async def entry(self, key):
        entry = await self.engine.kv.get(self.namespace, check_key(key))
        return entry and entry._replace(value=plain(entry.value))

    async def has(self, key):
        return await self.engine.kv.get(self.namespace, check_key(key)) is not None

    async def set(self, key, value, *, ttl=KEEP, if_match=None, if_absent=False):
        condition = Condition((if_match,) if if_match else None, ("*",) if if_absent else None)
        value = dump(value)
        result = await self.engine.kv.put(
            self.namespace,
            check_key(key),
            value=value,
            media_type=media_type(value),
            ttl_seconds=self._expiry(ttl),
            condition=condition,
        )
        return result.etag

    @staticmethod
    def _expiry(ttl):
        if ttl is KEEP:
            return ENGINE_KEEP
        return Expiry.NEVER if ttl is None else ttl

    async def delete(self, *keys):
        await self.engine.kv.batch(
            self.namespace, gets=[], sets=[], deletes=[BatchDelete(check_key(key)) for key in dict.fromkeys(keys)]
        )

    async def _pairs(self, match=None, values=False):
        return await everything(
            lambda after: self.engine.kv.list(
                self.namespace, match=match, prefix="", after=after, limit=1000, values=values
            )
        )

    async def keys(self):
        return [key for key, _ in await self._pairs()]

    async def find(self, *patterns):
        found: dict[str, Entry] = {}
        for pattern in patterns or (None,):
            found.update(await self._pairs(pattern, values=True))
        return [(key, plain(found[key].value)) for key in sorted(found, key=str.encode)]

    async def count(self):
        try:
            return (await self.engine.namespaces.describe(self.namespace)).kv
        except Problem:
            return 0

    async def get_many(self, keys):
        result = await self.engine.kv.batch(
            self.namespace, gets=[BatchGet(check_key(key)) for key in keys], sets=[], deletes=[]
        )
        return {key: plain(entry.value) for key, entry in result.entries}

    async def set_many(self, mapping, *, ttl=KEEP):
        values = {check_key(key): dump(value) for key, value in mapping.items()}
        sets = [BatchSet(key, value, media_type(value), self._expiry(ttl)) for key, value in values.items()]
        result = await self.engine.kv.batch(self.namespace, gets=[], sets=sets, deletes=[])
        return {key: put.etag for key, put in result.puts}

    # Time series.

    async def range(self, key, start=None, *, n=None, end=None, freq=None):
        if (n is not None and n < 0) or (freq is not None and freq < 1):
            raise ValueError("n is negative or freq not positive")
        chunks = await self._started(
            self.engine.ts.range(
                self.namespace,
                check_key(key),
                start=int64(start),
                end=int64(end),
                n=n,
                freq=freq,
                descending=False,
            )
        )
        return [(t, plain(value)) async for chunk in chunks for t, value in chunk]

    @staticmethod
    async def _started(answer):
        return await answer if asyncio.iscoroutine(answer) else answer

    async def first(self, key):
        points = await self.engine.ts.first(self.namespace, check_key(key))
        return points and next((t, plain(value)) for t, value in points)

    async def last(self, key):
        points = await self.engine.ts.last(self.namespace, check_key(key))
        return points and next((t, plain(value)) for t, value in points)

    async def missing(self, key, start, end=None, freq=None):
        if freq is None or freq < 1:
            raise ValueError("freq is needed")
        return list(
            await self.engine.ts.missing(self.namespace, check_key(key), start=int64(start), end=int64(end), freq=freq)
        )

    async def iscomplete(self, key, start, end=None, freq=None):
        if freq is None or freq < 1:
            raise ValueError("freq is needed")
        return await self.engine.ts.iscomplete(
            self.namespace, check_key(key), start=int64(start), end=int64(end), freq=freq
        )

    async def extend(self, key, *points):
        await self.engine.ts.extend(self.namespace, check_key(key), points=Points.from_pairs(points, dump))

    async def remove(self, *keys, start=None, end=None):
        for key in keys:
            await self.engine.ts.remove(self.namespace, check_key(key), start=int64(start), end=int64(end))

    async def timeseries(self):
        return [
            info.key
            for info in await everything(
                lambda after: self.engine.ts.list(self.namespace, match=None, prefix="", after=after, limit=1000)
            )
        ]

    # Event sequences.

    async def apply(self, key, changes, t=None):
        if not changes:
            return await self.current(key)
        events = []
        for item, change in changes.items():
            op, *rest = change if is_operation(change) else (operator.setitem, change)
            unary = op in (operator.delitem, operator.neg, operator.not_)
            value = None if unary else dump(*rest)
            events.append(Change(check_key(item, "item"), op.__name__, value))
        state = await self.engine.es.apply(self.namespace, check_key(key), changes=events, timestamp=int64(t))
        return self._state(state)[1]

    @staticmethod
    def _state(state):
        assert not state.events, "the service folds what is JSON"
        return state.timestamp, {item: plain(value) for item, value in state.items.items()}

    async def current(self, key, withtimestamp=False):
        state = await self.engine.es.current(self.namespace, check_key(key))
        return state and (self._state(state) if withtimestamp else self._state(state)[1])

    async def past(self, key, t, withtimestamp=False):
        state = await self.engine.es.past(self.namespace, check_key(key), t=int64(t))
        return state and (self._state(state) if withtimestamp else self._state(state)[1])

    async def events(self, key, start=None, end=None, ops=None):
        chunks = await self._started(
            self.engine.es.events(
                self.namespace,
                check_key(key),
                start=int64(start),
                end=int64(end),
                ops=None if ops is None else frozenset(op.__name__ for op in ops),
                item=None,
                n=None,
            )
        )
        if chunks is None:
            return None
        return [
            (
                event.timestamp,
                event.item,
                getattr(operator, event.op),
                None if event.value is None else plain(event.value),
            )
            async for chunk in chunks
            for event in chunk
        ]

    async def prune(self, *keys, remove=True):
        for key in keys:
            await self.engine.es.prune(self.namespace, check_key(key), remove=remove)

    async def eventsources(self):
        return [
            info.key
            for info in await everything(
                lambda after: self.engine.es.list(self.namespace, match=None, prefix="", after=after, limit=1000)
            )
        ]

    eventsequences = eventsources

    # Namespaces.

    async def namespaces(self):
        return [
            name
            for name, _ in await everything(
                lambda after: self.engine.namespaces.list(match=None, prefix="", after=after, limit=1000)
            )
        ]

    async def discard(self):
        await self.engine.namespaces.discard(self.namespace)


def media_type(value):
    from rstore.core.encodings import media_type_of

    return media_type_of(value.encoding)


def is_operation(change):
    """Whether it is ``(op, value)`` or ``(op,)``."""
    return type(change) is tuple and len(change) in (1, 2) and callable(change[0])


async def everything(list_page):
    """All items of a listing."""
    items, after = [], None
    while True:
        page = await list_page(after)
        items += page.items
        after = page.cursor
        if after is None:
            return items


class EngineDriver(Driver):
    """The engine on its own connection to the store, without HTTP."""

    features = frozenset()

    async def start(self) -> None:
        backend = await backend_class(self.deployment.dsn).open(self.deployment.dsn)
        self.stack.push_async_callback(backend.close)
        self.engine = Engine(backend, Limits())
        await self.engine.start()
        self.stack.push_async_callback(self.engine.stop)

    async def open(self, namespace: str | None, **options: None) -> EngineSubject:
        return EngineSubject(self.engine, namespace or "default")


# --- Store over HTTP ---------------------------------------------------------------------------------------


class StoreSubject(Conveniences):
    """Store, in worker threads."""

    def __init__(self, store: Store, namespace: str, key: str | None) -> None:
        self.store = store
        self.namespace = namespace
        self.key = key

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await anyio.to_thread.run_sync(functools.partial(method, *arguments, **options))

        return call

    async def iterate(self) -> list[str]:
        return await anyio.to_thread.run_sync(list, self.store)


class StoreDriver(Driver):
    """Store over real HTTP, against a service process."""

    features = frozenset({"client", "wire", "sealing", "mapping"})

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self.deployment.url

    async def start(self) -> None:
        self.http = await self.stack.enter_async_context(
            httpx2.AsyncClient(base_url=self.url, headers=self.deployment.headers, verify=False)
        )

    async def open(self, namespace: str | None, **options: Any) -> StoreSubject:
        arguments, attributes = self.options(options)
        kind = type("FixedStore", (Store,), attributes) if attributes else Store
        store = kind(self.url, namespace, **arguments)
        self.stack.push_async_callback(anyio.to_thread.run_sync, store.close)
        await anyio.to_thread.run_sync(store.open)
        return StoreSubject(store, namespace or "default", arguments.get("key"))


# --- AsyncStore over ASGI ----------------------------------------------------------------------------------


class UvicornDriver(StoreDriver):
    """Store against the same application under a server that knows nothing of rstore."""

    features = frozenset({"client", "wire"})
    backends = frozenset({"sqlite"})

    @property
    def url(self) -> str:
        return self._url

    async def start(self) -> None:
        self._url = await self.stack.enter_async_context(under_uvicorn(self.deployment.make_app()))
        await super().start()


@contextlib.asynccontextmanager
async def under_uvicorn(app: Any) -> AsyncIterator[str]:
    """The URL at which stock uvicorn serves ``app``, on an event loop and thread of its own."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(anyio.to_thread.run_sync(server.run))
    try:
        while not server.started:
            assert not serving.done(), "uvicorn did not start"
            await asyncio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await serving


class AsyncStoreSubject(Conveniences):
    """AsyncStore as it is."""

    def __init__(self, store: AsyncStore, namespace: str, key: str | None) -> None:
        self.store = store
        self.namespace = namespace
        self.key = key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def iterate(self) -> list[str]:
        return [key async for key in self.store]


class AsyncStoreDriver(Driver):
    """AsyncStore against the application in this process."""

    features = frozenset({"client", "wire", "sealing"})

    async def start(self) -> None:
        app = self.deployment.make_app()
        await self.stack.enter_async_context(lifespan(app))
        self.transport = httpx2.ASGITransport(app)
        self.http = await self.stack.enter_async_context(
            httpx2.AsyncClient(
                transport=self.transport, base_url="http://localhost", headers=self.deployment.headers, verify=False
            )
        )

    async def open(self, namespace: str | None, **options: Any) -> AsyncStoreSubject:
        arguments, attributes = self.options(options)
        kind = type("FixedStore", (AsyncStore,), attributes) if attributes else AsyncStore
        store = kind("http://localhost", namespace, transport=self.transport, **arguments)
        await self.stack.enter_async_context(store)
        return AsyncStoreSubject(store, namespace or "default", arguments.get("key"))


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Start an ASGI application and stop it, as a server does."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, to_app.get, from_app.put)
    )
    await to_app.put({"type": "lifespan.startup"})
    started = await from_app.get()
    assert started["type"] == "lifespan.startup.complete", started
    try:
        yield
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        stopped = await from_app.get()
        assert stopped["type"] == "lifespan.shutdown.complete", stopped
        await task


# --- cases -------------------------------------------------------------------------------------------------

DRIVERS: dict[str, type[Driver]] = {
    "engine": EngineDriver,
    "http": StoreDriver,
    "asgi": AsyncStoreDriver,
    "uvicorn": UvicornDriver,
}


class Case(NamedTuple):
    """A backend, a driver, and whether values are sealed."""

    backend: str
    driver: str
    sealed: bool

    def __str__(self) -> str:
        return f"{self.backend}-{self.driver}{'-sealed' if self.sealed else ''}"

    @property
    def features(self) -> frozenset[str]:
        """What a test may ask of this case."""
        return DRIVERS[self.driver].features | {"sealed" if self.sealed else "plain"}

    @property
    def key(self) -> str | None:
        """The key that its subjects are opened with."""
        return KEY if self.sealed else None

    @contextlib.asynccontextmanager
    async def connect(self, deployment: Deployment) -> AsyncIterator[Driver]:
        """The driver, started."""
        async with AsyncExitStack() as stack:
            driver = DRIVERS[self.driver](stack, deployment)
            await driver.start()
            yield driver


def cases(backends: list[str]) -> list[Case]:
    """Every case over these backends."""
    return [
        Case(backend, name, sealed)
        for backend in backends
        for name, driver in DRIVERS.items()
        if driver.backends is None or backend in driver.backends
        for sealed in ((False, True) if "sealing" in driver.features else (False,))
    ]
