"""The plain data that the engine's operations take and return, kind by kind. The API turns it into bodies and back."""

from __future__ import annotations

import enum
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from rstore.core.encodings import Value

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Part of a listing in key order. ``cursor`` is the key to pass as ``after`` next, or None at the end."""

    items: list[T]
    cursor: str | None


class NamespacePolicy(NamedTuple):
    """What a namespace requires of every write to it."""

    sealed_only: bool = False


class NamespaceInfo(NamedTuple):
    """A namespace: its policy, and how many keys, series and sequences it holds."""

    namespace: str
    policy: NamespacePolicy
    kv: int
    ts: int
    es: int


class Entry(NamedTuple):
    """A stored key/value pair. ``etag`` has no quotes. ``expires_ms`` is in POSIX milliseconds, or None."""

    value: Value
    media_type: str
    etag: str
    expires_ms: int | None


class Expiry(enum.Enum):
    """What a write without a ttl does to the expiry of the key: it keeps it, or takes it away."""

    KEEP = "keep"
    NEVER = "never"


KEEP: Final = Expiry.KEEP


class Condition(NamedTuple):
    """When a write takes place. If both are None, it always does.

    ``match``: one of these ETags is the current one. ``"*"`` means that the key exists.
    ``none_match``: none of these ETags is the current one. ``"*"`` means that the key does not exist.
    """

    match: tuple[str, ...] | None = None
    none_match: tuple[str, ...] | None = None


ANY: Final = Condition()


class PutResult(NamedTuple):
    """The ETag that is now stored, and whether the key is new."""

    etag: str
    created: bool


class BatchGet(NamedTuple):
    """A key that a batch reads. The batch gets it as it was before the batch."""

    key: str


class BatchSet(NamedTuple):
    """A key that a batch writes. ``ttl_seconds`` means the same as in ``put``."""

    key: str
    value: Value
    media_type: str
    ttl_seconds: float | Expiry = KEEP
    condition: Condition = ANY


class BatchDelete(NamedTuple):
    """A key that a batch deletes if it exists."""

    key: str
    condition: Condition = ANY


class BatchResult(NamedTuple):
    """``entries``: the gets that exist, in order. ``puts``: one for each set. ``deleted``: the keys that existed."""

    entries: list[tuple[str, Entry]]
    puts: list[tuple[str, PutResult]]
    deleted: list[str]


class Stretch(NamedTuple):
    """A condition of a write: the points from ``start`` to ``end`` have one of these digests.

    Both ends are inclusive, and None means that the stretch is open there. See :func:`rstore.core.points.digest`.
    """

    start: int | None
    end: int | None
    digests: tuple[str, ...]


class SeriesInfo(NamedTuple):
    """A series: its key, its number of points, its first and its last timestamp."""

    key: str
    points: int
    first: int
    last: int


class Change(NamedTuple):
    """A new event: item, operator and value. The value of a unary operator is None or sealed."""

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
    """A new sealed value for an event. ``replaces`` is the SHA-256, in hexadecimal, of the sealed value to replace."""

    timestamp: int
    item: str
    op: str
    replaces: str
    value: Value


class State(NamedTuple):
    """A sequence as of some event.

    ``timestamp`` is that of the last event that counts, and ``revision`` is the number of applies so far. ``items`` are
    the values that the service has folded. ``events`` are, in time order, the events of the items that only a client
    can fold. No item is in both.
    """

    timestamp: int
    revision: int
    items: dict[str, Value]
    events: list[StoredEvent]


class PruneResult(NamedTuple):
    """How many events were deleted, and whether the whole sequence was."""

    pruned: int
    removed: bool


class SequenceInfo(NamedTuple):
    """A sequence: its key, its number of events, revision, last timestamp, and the number of items in its state."""

    key: str
    events: int
    revision: int
    last: int
    items: int


AccessLevel: TypeAlias = Literal["metrics", "read", "write", "admin"]
"""The names of :class:`Access`, in lower case."""


class Access(enum.IntEnum):
    """What a token may do in its namespaces. Each level includes those before it.

    ``METRICS`` reads only the metrics of the service, which belong to no namespace.
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
    """A token and its text. Nobody can read the text again later, and no ``repr`` shows it."""

    __slots__ = ("info", "text")

    def __init__(self, text: str, info: TokenInfo) -> None:
        self.text = text
        self.info = info


class ValidToken(NamedTuple):
    """A verified token, and until when the text that was sent is valid: the token expires, or the grace ends."""

    info: TokenInfo
    until_ms: int | None
