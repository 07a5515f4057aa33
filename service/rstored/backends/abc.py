"""The contract of a storage backend: one model, and a few reads and writes. A backend has no rules.

The model. A **record** has a unique place ``(namespace, kind, key)``, a **head**, and any number of **rows**, which
only series and sequences use. Rows are in numbered **lanes** of their record. In a lane they are ordered by ``sort``,
which is bytes and unique in the lane. They can also be found in order of ``by``, which is bytes or None, and unique in
the lane where it is not None. Bytes compare as unsigned bytes, and a prefix comes first. A **namespace** is a record
too, of kind ``NAMESPACE``, in namespace ``""``. Deleting it deletes every record in it.

Only the engine knows what these records mean (entries, blocks, events, policies, expiry). A backend never looks inside
``meta``, ``value``, ``sort`` or ``by``, and decides nothing by them.

Reading. A *query* is a tuple of reads that see one snapshot. ``Backend.read`` takes a batch of independent
queries and answers them in order.

Writing. An :class:`Update` names the records that it may change, and has a *plan*. This is a pure generator function.
It gets the heads of the records, may yield further queries, and returns a :class:`Commit`. ``Backend.update`` takes a
batch of independent updates. Each is atomic, isolated from every other one (serialisable over the records it names),
and durable when the call returns. A backend locks the named records, or compares them and tries again. So it may start
a plan more than once, and a plan must have no side effects.
"""

from __future__ import annotations

import abc
import enum
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from rstored.backends.clock import Clock
from rstored.problems import Problem

__all__ = [
    "COUNTED",
    "Backend",
    "Capabilities",
    "Commit",
    "CountRead",
    "DeleteRecord",
    "DeleteRow",
    "DeleteRows",
    "ExpiredRead",
    "Head",
    "HeadRead",
    "Kind",
    "Listing",
    "Place",
    "Plan",
    "PutHead",
    "PutRow",
    "Query",
    "Read",
    "Row",
    "RowOrder",
    "RowScan",
    "SchemaVersions",
    "Slice",
    "UnfitStorage",
    "Update",
    "Write",
    "namespace_place",
]


class Kind(enum.IntEnum):
    """What a record is."""

    NAMESPACE = 0
    KV = 1
    TS = 2
    ES = 3
    WRITE = 4


COUNTED: Final = (Kind.KV, Kind.TS, Kind.ES)
"""The kinds that are counted. Every write adds a record of kind WRITE, so all writes would wait for one counter."""


class Place(NamedTuple):
    """Where a record is. ``key`` obeys ``rstore.core.names``, and keys are ordered by their UTF-8 bytes.

    A key of kind WRITE is an id, a space and another key. An update can change it together with a record at that key.
    """

    namespace: str
    kind: Kind
    key: str


@functools.lru_cache(maxsize=1024)
def namespace_place(namespace: str) -> Place:
    """The place of the record that is the namespace itself.

    >>> namespace_place("zoo")
    Place(namespace='', kind=<Kind.NAMESPACE: 0>, key='zoo')
    """
    return Place("", Kind.NAMESPACE, namespace)


class Head(NamedTuple):
    """A record without its rows. A backend stores and indexes ``expires_ms``, in POSIX milliseconds or None."""

    meta: bytes
    value: bytes = b""
    expires_ms: int | None = None


class Row(NamedTuple):
    """A row of a record."""

    sort: bytes
    value: bytes
    by: bytes | None = None


class RowOrder(enum.IntEnum):
    """The order of a scan. ``BY`` finds only the rows that have a ``by``."""

    SORT = 0
    BY = 1


T = TypeVar("T")


class Slice(NamedTuple, Generic[T]):
    """A part of an ordered sequence, and whether a limit cut it. If so, ``items`` has at least one item."""

    items: list[T]
    more: bool


class HeadRead(NamedTuple):
    """→ ``Head | None``: None if the record (or its namespace) does not exist. Expired heads are returned.

    A value of more than ``bytes_max`` bytes is not read, and the head has an empty value instead.
    """

    place: Place
    bytes_max: int | None = None


class RowScan(NamedTuple):
    """→ ``Slice[Row]``: the rows of one lane from ``low`` to ``high``, both inclusive. None means open.

    With ``floor`` (only with ``SORT``) the scan begins at the greatest ``sort`` ≤ ``low`` if there is one, so the row
    that ``low`` falls into comes first. ``descending`` reverses the order, and is never used with ``floor``.
    The scan stops after ``limit`` rows, or after the row with which the values reach ``bytes_max`` bytes.
    A record that does not exist has no rows.
    """

    place: Place
    lane: int
    low: bytes | None = None
    high: bytes | None = None
    along: RowOrder = RowOrder.SORT
    descending: bool = False
    floor: bool = False
    limit: int | None = None
    bytes_max: int | None = None


class Listing(NamedTuple):
    """→ ``Slice[tuple[str, Head]]``: records of one kind in key order, after ``after``, starting with ``prefix``.

    Without ``values``, the values are not read, and the heads have empty ones. It stops as a RowScan does, and includes
    expired heads. Namespaces are listed with ``namespace=""`` and ``kind=Kind.NAMESPACE``.
    """

    namespace: str
    kind: Kind
    prefix: str = ""
    after: str | None = None
    values: bool = False
    limit: int = 1000
    bytes_max: int | None = None


class CountRead(NamedTuple):
    """→ ``dict[Kind, int]``: how many records of each kind a namespace has, without those expired at ``now_ms``.

    Every kind in :data:`COUNTED` is present, even with 0. The cost does not grow with the number of records.
    """

    namespace: str
    now_ms: int


class ExpiredRead(NamedTuple):
    """→ ``list[Place]``: at most ``limit`` records with ``expires_ms`` ≤ ``now_ms``, in order of expiry."""

    now_ms: int
    limit: int


Read: TypeAlias = HeadRead | RowScan | Listing | CountRead | ExpiredRead
Query: TypeAlias = tuple[Read, ...]


class PutHead(NamedTuple):
    """Create the record, or replace its head. Its rows stay."""

    place: Place
    head: Head


class DeleteRecord(NamedTuple):
    """Delete head and rows, and with a namespace every record in it. Nothing happens if the record does not exist.

    No later read finds the record. :meth:`Backend.purge` may erase its rows a little later.
    """

    place: Place


class PutRow(NamedTuple):
    """Add the row, or replace the one with the same ``sort``. The record exists, or the same commit creates it."""

    place: Place
    lane: int
    row: Row


class DeleteRow(NamedTuple):
    """Delete the row with this ``sort``. Nothing happens if there is none."""

    place: Place
    lane: int
    sort: bytes


class DeleteRows(NamedTuple):
    """Delete the rows of a lane from ``low`` to ``high``, both inclusive. None means open."""

    place: Place
    lane: int
    low: bytes | None = None
    high: bytes | None = None


Write: TypeAlias = PutHead | DeleteRecord | PutRow | DeleteRow | DeleteRows


class Commit(NamedTuple, Generic[T]):
    """The end of a plan: the writes, to be carried out in order, and the answer to its caller."""

    writes: Sequence[Write]
    answer: T


Plan: TypeAlias = Callable[[Mapping[Place, Head | None]], Generator[Query, list[Any], Commit[T]]]


class Update(NamedTuple, Generic[T]):
    """An atomic read-modify-write of the records at ``places``: records of one namespace, or namespaces.

    ``plan(heads)`` gets the head, with an empty value, of each place and of the namespace of each place, or None. While
    it runs, nobody else writes to the places or deletes their namespaces. It may yield queries over the places, and
    gets their results. It returns a Commit that writes only to the places, and may create their namespaces. To refuse,
    it raises :class:`Problem`: then nothing is written, and the problem is the result of the update. An update that
    deletes a namespace has the place of that namespace in ``places``. A plan may find that a namespace is absent
    although another update of the batch creates it. Then both create it.
    """

    places: tuple[Place, ...]
    plan: Plan[T]


class Capabilities(NamedTuple):
    """How backends differ. The engine and the tests look at this, and never at the name of a backend.

    ``local_reads``: a read does not wait for another machine. So it runs at once on the event loop, unless many come
    in one round of it. ``atomic_batches``: an update may name any records of one namespace. Without it, the backend
    refuses updates of records that it cannot change in one step, with the problem ``batch-not-atomic``. It can always
    change keys with a common ``{part}`` in braces in one step. ``prompt_batches``: most of the work of a batch is done
    elsewhere while the event loop goes on. So beginning the next batch at once gains more than waiting until it is
    large.
    """

    local_reads: bool = False
    atomic_batches: bool = True
    prompt_batches: bool = False


class SchemaVersions(NamedTuple):
    """The version of the storage's schema, 0 if there is none, and the version that this program makes."""

    present: int
    known: int


class UnfitStorage(Problem):
    """The storage answers, but must not be used. The store that was opened is gone, or another one is in its place, or
    the storage is a copy that may be behind.

    Meanwhile nothing is read or written, because reads would be out of date and writes would be lost.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("backend-unavailable", detail)


class Backend(abc.ABC):
    """A place where records are kept. All methods are called on the event loop that called :meth:`open`.

    If the storage fails, methods raise :class:`Problem`: ``backend-unavailable`` (it does not answer, and a write under
    way may have taken place), ``storage-full`` or ``backend-corrupt``. Each backend translates the errors of its driver
    in exactly one place.
    """

    capabilities: Capabilities

    clock: Clock = Clock()
    """The time by which records expire. A storage that has a clock gives its time at :meth:`open` and :meth:`ping`."""

    @classmethod
    @abc.abstractmethod
    async def open(cls, dsn: str) -> Backend:
        """Connect, migrate the schema under a lock, and return. Raises :class:`Problem` with a message of one line."""

    @classmethod
    @abc.abstractmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """The versions of the schema. It changes nothing, and raises what :meth:`open` raises."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish what is under way, and release every connection, file and thread. Idempotent."""

    @abc.abstractmethod
    async def ping(self) -> None:
        """Return if the backend answers within about a second; otherwise raise :class:`Problem`.

        Raises :class:`UnfitStorage` if it is certain that the store must not be used. The engine asks once a second.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, str]:
        """What ``/`` says about the backend: ``name``, ``version``, and ``durability`` of acknowledged writes.

        A backend that may lose acknowledged writes adds a ``warning``, which says why and what to set.
        """

    @abc.abstractmethod
    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        """For each query the list of the results of its reads, in order, or its problem."""

    def renew(self) -> None:  # noqa: B027 (most backends have nothing to renew)
        """Make sure that later reads see everything that is committed by now.

        Without this call, a backend may use one snapshot for all reads of one round of the event loop.
        """

    @abc.abstractmethod
    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        """Carry out each update, and return its answer or its problem, in order.

        Updates of one batch take effect as if one after the other, in order. An update that fails leaves no trace, and
        does not disturb the others. Calls do not overlap, because the engine has one batch under way at a time.
        If a plan raises an exception other than Problem, that is a bug, and the exception is the result of the update.
        """

    @abc.abstractmethod
    async def purge(self) -> bool:
        """Erase a bounded part of what deleted records left. True if there may be more to erase."""
