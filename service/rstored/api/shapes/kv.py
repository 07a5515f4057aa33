"""``/kv``: the shapes of its bodies, and the parameters of its queries."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic import BeforeValidator, Field

from rstored.api.conditions import BARE_TAG_PATTERN
from rstored.api.parameters import KeyName, ListQuery, Query, Switch
from rstored.api.values import EncodingLabel
from rstored.engine.kv import TTL_SECONDS_MAX

_SECONDS: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?\Z", re.ASCII)

ETag = Annotated[str, Meta(description="bare, without quotes")]
ExpiresMs = Annotated[int, Meta(description="POSIX milliseconds")]
BareTag = Annotated[str, Meta(extra_json_schema={"pattern": BARE_TAG_PATTERN})]
TtlSeconds = Annotated[float, Meta(gt=0, le=TTL_SECONDS_MAX)]


class KeyItem(Struct):
    """A pair in a listing. It has `value` and `encoding` only if the request has `values=true`."""

    key: str
    media_type: str
    etag: ETag
    expires: ExpiresMs | None
    value: Annotated[Raw, Meta(description="JSON, or base64 (msgpack: bytes) beside `encoding`")] | UnsetType = UNSET
    encoding: EncodingLabel | UnsetType = UNSET


class KeyList(Struct):
    """A page of pairs, in key order."""

    items: list[KeyItem]
    cursor: str | None


class SetPart(Struct, forbid_unknown_fields=True):
    """A key to write."""

    key: KeyName
    value: Annotated[Raw, Meta(description="JSON, or base64 (msgpack: bytes) beside `encoding`")]
    encoding: EncodingLabel = "json"
    media_type: Annotated[str, Meta(description="of a value with encoding `bytes`")] | UnsetType = UNSET
    ttl: (
        Annotated[TtlSeconds | Literal["never"], Meta(description="seconds; without it the key keeps its expiry")]
        | UnsetType
    ) = UNSET
    if_match: Annotated[BareTag, Meta(description="a bare ETag, or `*`: the key must exist")] | None = None
    if_none_match: Annotated[BareTag, Meta(description="a bare ETag, or `*`: the key must not exist")] | None = None


class DeletePart(Struct, forbid_unknown_fields=True):
    """A key to delete under a condition."""

    key: KeyName
    if_match: Annotated[BareTag, Meta(description="a bare ETag, or `*`: the key must exist")]


class KeyBatch(Struct, forbid_unknown_fields=True):
    """Reads and writes that happen together or not at all. The reads see the values from before the writes."""

    get: list[KeyName] = []
    set: list[SetPart] = []
    delete: list[KeyName | DeletePart] = []


class KeySet(Struct):
    """A key that was written."""

    key: str
    etag: ETag
    created: bool


class KeyBatchResult(Struct):
    """`get`: the pairs that exist. `set`: one item for each part. `delete`: the keys that existed."""

    get: list[KeyItem]
    set: list[KeySet]
    delete: list[str]


def _ttl(value: Any) -> Any:
    if isinstance(value, str) and value != "never":
        if _SECONDS.match(value) is None:
            raise ValueError("write a number of seconds such as 60 or 0.5, or never")
        return float(value)
    return value


class PutQuery(Query):
    """The parameters of a write."""

    ttl: Annotated[
        Annotated[float, Field(gt=0, le=TTL_SECONDS_MAX)] | Literal["never"] | None, BeforeValidator(_ttl)
    ] = Field(
        default=None,
        description="seconds until the key expires (fractions allowed), or `never`; by default its expiry stays",
        examples=[60, "never"],
    )


class KeyListQuery(ListQuery):
    """The parameters of a listing of pairs."""

    values: Switch = Field(default=False, description="whether to include the value of each item")
