"""What the engine's operations take and give. Plain data; the API turns it into bodies and back."""

from __future__ import annotations

import enum
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from rstore.core.encodings import Value

__all__ = [
    "ANY",
    "KEEP",
    "Access",
    "AccessLevel",
    "BatchDelete",
    "BatchGet",
    "BatchResult",
    "BatchSet",
    "Change",
    "Condition",
    "Entry",
    "Expiry",
    "NamespaceInfo",
    "NamespacePolicy",
    "NewToken",
    "Page",
    "PruneResult",
    "PutResult",
    "Reseal",
    "SequenceInfo",
    "SeriesInfo",
    "State",
    "StoredEvent",
    "Stretch",
    "TokenInfo",
    "ValidToken",
]

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Part of a listing in key order. ``cursor`` is the key to pass as ``after``; None at the end."""

    items: list[T]
    cursor: str | None


# --- namespaces --------------------------------------------------------------------------------------------


class NamespacePolicy(NamedTuple):
    """What a namespace demands of every write to it."""

    sealed_only: bool = False


class NamespaceInfo(NamedTuple):
    """A namespace: its policy, and how many keys, series and sequences it holds."""

    namespace: str
    policy: NamespacePolicy
    kv: int
    ts: int
    es: int


# --- key/value ---------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A stored key/value pair. ``etag`` is bare, without quotes; ``expires_ms`` POSIX milliseconds or None."""

    value: Value
    media_type: str
    etag: str
    expires_ms: int | None


class Expiry(enum.Enum):
    """What a write does to the expiry a key has when it is not given a ttl."""

    KEEP = "keep"
    NEVER = "never"


KEEP: Final = Expiry.KEEP


class Condition(NamedTuple):
    """When a write takes place. All None and False: always.

    ``match``: one of these ETags is the current one (``"*"``: the key exists).
    ``none_match``: none of these ETags is the current one (``"*"``: the key does not exist).
    """

    match: tuple[str, ...] | None = None
    none_match: tuple[str, ...] | None = None


ANY: Final = Condition()


class PutResult(NamedTuple):
    """The ETag now stored, and whether the key is new."""

    etag: str
    created: bool


class BatchGet(NamedTuple):
    """A key that a batch reads, as it was before the batch."""

    key: str


class BatchSet(NamedTuple):
    """A key that a batch writes. ``ttl_seconds`` as in ``put``."""

    key: str
    value: Value
    media_type: str
    ttl_seconds: float | Expiry = KEEP
    condition: Condition = ANY


class BatchDelete(NamedTuple):
    """A key that a batch deletes, if it is there."""

    key: str
    condition: Condition = ANY


class BatchResult(NamedTuple):
    """``entries``: the gets that exist, in order. ``puts``: one for each set. ``deleted``: keys that were there."""

    entries: list[tuple[str, Entry]]
    puts: list[tuple[str, PutResult]]
    deleted: list[str]


# --- time series -------------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """What a write demands of a stretch of a series: that its points have one of these digests.

    From ``start`` to ``end``, both inclusive, None meaning open; see :func:`rstore.core.points.digest`.
    """

    start: int | None
    end: int | None
    digests: tuple[str, ...]


class SeriesInfo(NamedTuple):
    """A series: its key, how many points it has, its first and last timestamp."""

    key: str
    points: int
    first: int
    last: int


# --- event sequences ---------------------------------------------------------------------------------------


class Change(NamedTuple):
    """An event to be: item, operator name, and its value (for unary operators None, or a sealed one)."""

    item: str
    op: str
    value: Value | None


class StoredEvent(NamedTuple):
    """An event of a sequence."""

    timestamp: int
    item: str
    op: str
    value: Value | None


class Reseal(NamedTuple):
    """A sealed value to be: of which event, the SHA-256 of the sealed value it replaces (hexadecimal), and itself."""

    timestamp: int
    item: str
    op: str
    replaces: str
    value: Value


class State(NamedTuple):
    """A sequence as of some event.

    ``timestamp`` of the last event included; ``revision`` counts the applies; ``items`` what the service
    folded, by item; ``events`` those, in time order, of the items that only a client can fold (each item is in one
    of the two, never in both).
    """

    timestamp: int
    revision: int
    items: dict[str, Value]
    events: list[StoredEvent]


class PruneResult(NamedTuple):
    """How many events were deleted, and whether the whole sequence went."""

    pruned: int
    removed: bool


class SequenceInfo(NamedTuple):
    """A sequence: its key, events stored, revision, timestamp of the last event, items present in its state."""

    key: str
    events: int
    revision: int
    last: int
    items: int


# --- tokens ------------------------------------------------------------------------------------------------


AccessLevel: TypeAlias = Literal["metrics", "read", "write", "admin"]
"""The names of :class:`Access`, in lower case."""


class Access(enum.IntEnum):
    """What a token may do in its namespaces. Each level includes those before it.

    ``METRICS`` reads the service's metrics, which are no namespace's, and nothing else.
    """

    METRICS = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


class TokenInfo(NamedTuple):
    """A token, without its secret. ``namespaces`` are globs; ``expires_ms`` is POSIX milliseconds or None."""

    id: str
    label: str
    namespaces: tuple[str, ...]
    access: Access
    created_ms: int
    expires_ms: int | None


class NewToken:
    """A token and its text, which is known now and never again, and which no ``repr`` shows."""

    __slots__ = ("info", "text")

    def __init__(self, text: str, info: TokenInfo) -> None:
        self.text = text
        self.info = info


class ValidToken(NamedTuple):
    """A token that was verified, and until when what was sent counts: it expires, or its grace ends."""

    info: TokenInfo
    until_ms: int | None
