"""``/es``: the shapes of its bodies, and the parameters of its queries."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic import Field

from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstored.api.parameters import Count, EndParameter, Int64, KeyName, Query, StartParameter
from rstored.api.values import EncodingLabel

OpName = Literal[
    "setitem", "delitem", "add", "concat", "floordiv", "mod", "mul", "pow", "sub", "truediv", "neg", "not_"
]
_OP_NAMES: Final = "|".join(get_args(OpName))
Timestamp = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX, description="POSIX milliseconds")]
Revision = Annotated[int, Meta(ge=0, le=INT64_MAX, description="the number of applies to the sequence so far")]


class EventPart(Struct, forbid_unknown_fields=True):
    """An event to apply; for `delitem`, `neg` and `not_` the `value` is absent, null or `sealed`."""

    item: KeyName
    op: OpName = "setitem"
    value: Annotated[Raw, Meta(description="JSON, or base64 (msgpack: bytes) beside `encoding`")] = msgspec.field(
        default_factory=Raw
    )
    encoding: EncodingLabel = "json"


class Apply(Struct, forbid_unknown_fields=True):
    """Events to apply at one timestamp, by default `max(now, last + 1)`.

    With `revision` they are applied only if the sequence has this revision. 0 means that it must not exist.
    """

    events: list[EventPart]
    timestamp: Timestamp | None = None
    revision: Revision | None = None


class EventBody(Struct):
    """A stored event."""

    timestamp: Timestamp
    item: str
    op: OpName
    value: Annotated[Raw, Meta(description="JSON, or base64 (msgpack: bytes) beside `encoding`; null without one")]
    encoding: EncodingLabel | UnsetType = UNSET


class EventList(Struct):
    """Events in order of timestamp, then item."""

    events: list[EventBody]


class StateBody(Struct):
    """The state of a sequence after its event at `timestamp`.

    `state` holds the items that the service has folded. `events` holds, in order, the events of the items that only
    the client can fold.
    In msgpack a value in `state` with numbers that msgpack cannot hold is its JSON text, as bytes.
    """

    timestamp: Timestamp
    revision: Revision
    state: dict[str, Raw]
    events: list[EventBody]


class Prune(Struct, forbid_unknown_fields=True):
    """What to prune. `remove` says whether to delete the whole sequence if its state is empty."""

    remove: bool = True


class Pruned(Struct):
    """How many events were deleted, and whether the whole sequence was."""

    pruned: int
    removed: bool


class ResealPart(Struct, forbid_unknown_fields=True):
    """The new sealed value of an event, and the value that it replaces."""

    timestamp: Timestamp
    item: KeyName
    op: OpName
    replaces: Annotated[
        str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the event's present sealed value, in hexadecimal")
    ]
    value: Annotated[Raw, Meta(description="base64 (msgpack: bytes) of the new sealed value")]


class ResealBody(Struct, forbid_unknown_fields=True):
    """Events to give new sealed values, all or none."""

    events: list[ResealPart]


class Resealed(Struct):
    """How many events now have the values that were sent."""

    resealed: int


class RemovedEvents(Struct):
    """How many events were removed."""

    removed: int


class SequenceItem(Struct):
    """A sequence in a listing; `items` is the number of items in its state."""

    key: str
    events: int
    revision: Revision
    last: Timestamp
    items: int


class SequenceList(Struct):
    """A page of sequences, in key order."""

    items: list[SequenceItem]
    cursor: str | None


class EventsQuery(Query):
    """The parameters for reading events."""

    start: StartParameter = None
    end: EndParameter = None
    ops: str | None = Field(
        default=None,
        description="only these operators: names with commas between them",
        examples=["setitem,delitem"],
        json_schema_extra={"pattern": f"^({_OP_NAMES})(,({_OP_NAMES}))*$"},
    )
    item: str | None = Field(default=None, description="only events of this item", json_schema_extra={"minLength": 1})
    n: Count | None = Field(default=None, description="at most this many events")


class PastQuery(Query):
    """The parameters for reading a past state."""

    t: Int64 = Field(description="the state as of this timestamp, inclusive", examples=[1700000000000])
