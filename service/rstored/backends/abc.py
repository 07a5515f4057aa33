"""What a storage backend is: one model, a handful of reads and writes, no rules.

The model. A **record** has a unique place ``(namespace, kind, key)``, a **head** and, for series and
sequences, any number of **rows**. Rows live in numbered **lanes** of their record; in a lane they are ordered
by ``sort`` (bytes, unique in the lane) and can also be found in order of ``by`` (bytes or None, unique in
the lane where it is not None). Bytes compare as unsigned bytes, shorter first. A **namespace** is itself a
record, of kind ``NAMESPACE``, in namespace ``""``; deleting it deletes every record in it.

What these records mean (entries, blocks, events, policies, expiry) is the engine's business alone. A backend
never looks inside ``meta``, ``value``, ``sort`` or ``by``, and decides nothing from them.

Reading. A *query* is a tuple of reads that see one snapshot. ``Backend.read`` takes a batch of independent
queries and answers them in order.

Writing. An :class:`Update` names the records that it may change and a *plan*: a pure generator function that
receives their heads, may yield further queries, and returns a :class:`Commit`. ``Backend.update`` takes a batch of
independent updates; each is atomic, isolated from every other one (serialisable over the records it names),
and durable when the call returns. A backend locks the named records or compares and retries, so a plan can
be started more than once and must have no side effects.
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
"""The kinds that are counted. Those of kind WRITE come and go with every write, which would all meet at a counter."""


class Place(NamedTuple):
    """Where a record is. ``key`` obeys ``rstore.core.names``; keys are ordered by their UTF-8 bytes.

    A key of kind WRITE is an id, a space and another key; it can be changed in one step with a record at that key.
    """

    namespace: str
    kind: Kind
    key: str


@functools.lru_cache(maxsize=1024)
def namespace_place(namespace: str) -> Place:
    """The place of the record that is the namespace itself."""
    return Place("", Kind.NAMESPACE, namespace)


class Head(NamedTuple):
    """A record without its rows. ``expires_ms`` is POSIX milliseconds or None; a backend stores and indexes it."""

    meta: bytes
    value: bytes = b""
    expires_ms: int | None = None


class Row(NamedTuple):
    """A row of a record."""

    sort: bytes
    value: bytes
    by: bytes | None = None


class RowOrder(enum.IntEnum):
    """Which order a scan follows. ``BY`` sees only the rows that have a ``by``."""

    SORT = 0
    BY = 1


T = TypeVar("T")


class Slice(NamedTuple, Generic[T]):
    """A part of an ordered sequence, and whether a limit cut it (then ``items`` holds at least one)."""

    items: list[T]
    more: bool


# --- reads -------------------------------------------------------------------------------------------------


class HeadRead(NamedTuple):
    """→ ``Head | None``: None if the record (or its namespace) does not exist. Expired heads are returned.

    A value of more than ``bytes_max`` bytes is left out: it is not read, and the head comes with an empty one.
    """

    place: Place
    bytes_max: int | None = None


class RowScan(NamedTuple):
    """→ ``Slice[Row]``: the rows of one lane from ``low`` to ``high``, both inclusive, None meaning open.

    With ``floor`` (``SORT`` only) the scan begins at the greatest ``sort`` ≤ ``low`` if there is one, so the row
    that ``low`` falls into comes first. ``descending`` reverses the order (and is never used with ``floor``).
    It stops after ``limit`` rows, or after the row with which the values reach ``bytes_max`` bytes.
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

    Without ``values`` the heads come with empty values, and the values are not read. Stops as a RowScan does.
    Expired heads are included. Namespaces are listed with ``namespace=""``, ``kind=Kind.NAMESPACE``.
    """

    namespace: str
    kind: Kind
    prefix: str = ""
    after: str | None = None
    values: bool = False
    limit: int = 1000
    bytes_max: int | None = None


class CountRead(NamedTuple):
    """→ ``dict[Kind, int]``: how many records of each kind are in a namespace, but for those expired at ``now_ms``.

    Every kind in :data:`COUNTED` is present, 0 included. The cost does not grow with the number of records.
    """

    namespace: str
    now_ms: int


class ExpiredRead(NamedTuple):
    """→ ``list[Place]``: at most ``limit`` records with ``expires_ms`` ≤ ``now_ms``, the longest expired first."""

    now_ms: int
    limit: int


Read: TypeAlias = HeadRead | RowScan | Listing | CountRead | ExpiredRead
Query: TypeAlias = tuple[Read, ...]


# --- writes ------------------------------------------------------------------------------------------------


class PutHead(NamedTuple):
    """Create the record or replace its head; its rows stay."""

    place: Place
    head: Head


class DeleteRecord(NamedTuple):
    """Delete head and rows (of a namespace: every record in it). Nothing happens if it does not exist.

    The record is gone for every later read; its rows may be erased a little later by :meth:`Backend.purge`.
    """

    place: Place


class PutRow(NamedTuple):
    """Add the row or replace the one with the same ``sort``. The record exists or is created in the same commit."""

    place: Place
    lane: int
    row: Row


class DeleteRow(NamedTuple):
    """Delete the row with this ``sort``; nothing happens if there is none."""

    place: Place
    lane: int
    sort: bytes


class DeleteRows(NamedTuple):
    """Delete the rows of a lane from ``low`` to ``high``, both inclusive, None meaning open."""

    place: Place
    lane: int
    low: bytes | None = None
    high: bytes | None = None


Write: TypeAlias = PutHead | DeleteRecord | PutRow | DeleteRow | DeleteRows


class Commit(NamedTuple, Generic[T]):
    """What a plan ends with: the writes, carried out in order, and the answer to its caller."""

    writes: Sequence[Write]
    answer: T


Plan: TypeAlias = Callable[[Mapping[Place, Head | None]], Generator[Query, list[Any], Commit[T]]]


class Update(NamedTuple, Generic[T]):
    """An atomic read-modify-write of the records at ``places``: records of one namespace, or namespaces.

    ``plan(heads)`` gets the head (or None), with an empty value, of each place and of each place's namespace record;
    the places are locked for it, their namespaces are held against deletion. It may yield queries over those places
    and be sent their results, and returns a Commit that writes only to them (and creates their namespaces). It raises
    :class:`Problem` to refuse: then nothing is written and the problem is the update's result.
    ``DeleteRecord`` of a namespace is given with that namespace's place in ``places``.
    A plan may find a namespace that it does not name absent although another update of the batch creates it: both do.
    """

    places: tuple[Place, ...]
    plan: Plan[T]


# --- the backend -------------------------------------------------------------------------------------------


class Capabilities(NamedTuple):
    """What truly differs between backends. The engine and the tests ask these, never a backend's name.

    ``local_reads``: a read returns without waiting for another machine, so it is run at once on the event loop
    and gathering several into a batch gains nothing.
    ``atomic_batches``: an update may name any records of one namespace. Without it the backend refuses, with the
    problem ``batch-not-atomic``, updates of records that it cannot change in one step; keys with a common ``{part}``
    in braces it always can.
    ``prompt_batches``: a batch is so much work elsewhere, while the event loop goes on, that to begin the next one
    at once gains more than to wait until it is large.
    """

    local_reads: bool = False
    atomic_batches: bool = True
    prompt_batches: bool = False


class SchemaVersions(NamedTuple):
    """The version of a storage's schema, 0 if it is empty or not there, and the version that this program makes."""

    present: int
    known: int


class UnfitStorage(Problem):
    """The storage answers, but must not be used: the store that was opened is gone, or another one is in its place, or
    it is a copy that may be behind.

    While that is so, nothing is read or written; whatever was, would be lost or out of date.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("backend-unavailable", detail)


class Backend(abc.ABC):
    """A place where records are kept. All methods are called on the event loop that called :meth:`open`.

    Failures that are not the caller's are raised as :class:`Problem`: ``backend-unavailable`` (it does not answer;
    nothing is known of a write under way), ``storage-full``, ``backend-corrupt``. Each backend translates its
    driver's errors in exactly one place.
    """

    capabilities: Capabilities

    clock: Clock = Clock()
    """The time by which records expire. A storage that has a clock gives its time at :meth:`open` and :meth:`ping`."""

    @classmethod
    @abc.abstractmethod
    async def open(cls, dsn: str) -> Backend:
        """Connect, migrate the schema under a lock, and return. Raises :class:`Problem` with one clear line."""

    @classmethod
    @abc.abstractmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """The versions, having changed nothing. Raises as :meth:`open` does."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish what is under way and let go of every connection, file and thread. Idempotent."""

    @abc.abstractmethod
    async def ping(self) -> None:
        """Return if the backend answers, within a second or so; otherwise raise :class:`Problem`.

        Raises :class:`UnfitStorage` if it is certain that the store must not be used. The engine asks once a second.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, str]:
        """What ``/`` says of it: ``name``, ``version``, ``durability`` (a sentence: what an acknowledgement means).

        A backend that may lose what it acknowledged adds a ``warning``: why, and what to set.
        """

    @abc.abstractmethod
    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        """Answer each query with the list of its reads' results, in order, or with the problem it met."""

    def renew(self) -> None:  # noqa: B027 (most backends have nothing to renew)
        """What is read from now on is no older than now.

        Without it, it may be as old as the present round of the event loop: a backend may read at one moment for all
        who ask in one round.
        """

    @abc.abstractmethod
    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        """Carry out each update and return its answer or the problem it met, in order.

        Updates of one batch take effect as if one after the other, in order. One that fails leaves no trace and
        does not disturb its neighbours. Calls do not overlap: the engine has one batch under way at a time.
        An exception of a plan that is no Problem is a bug: it is returned as that update's result as it is.
        """

    @abc.abstractmethod
    async def purge(self) -> bool:
        """Erase a bounded part of what deleted records left behind; True if there may be more to erase."""
