"""Query parameters: the types they share, how a query string is read, and cursors."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import Meta
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rstore.core.names import InvalidName, check_key, check_namespace
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.validation import first_failure

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}\Z", re.ASCII)
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _integer(value: Any) -> Any:
    if isinstance(value, str):
        if _INTEGER.match(value) is None:
            raise ValueError("write an integer in decimal digits")
        return int(value)
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("write true or false")
        return value == "true"
    return value


# An integer has only decimal digits: no ``1e3``, ``1_000``, ``+1``. The bounds precede the validator, because otherwise
# the JSON schema would not have them.
Int64 = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX), BeforeValidator(_integer)]
Step = Annotated[int, Field(ge=1, le=INT64_MAX), BeforeValidator(_integer)]
Count = Annotated[int, Field(ge=0, le=INT64_MAX), BeforeValidator(_integer)]
PageSize = Annotated[int, Field(ge=1, le=INT64_MAX), BeforeValidator(_integer)]
Switch = Annotated[bool, BeforeValidator(_switch)]

# The schema of a key or an item in a body. `checked_key` decides, with a code of its own.
KEY_PATTERN: Final = r"^[^\u0000]+$"
KeyName = Annotated[str, Meta(extra_json_schema={"minLength": 1, "pattern": KEY_PATTERN})]

StartParameter = Annotated[Int64 | None, Field(description="first timestamp, inclusive", examples=[1700000000000])]
EndParameter = Annotated[Int64 | None, Field(description="last timestamp, inclusive", examples=[1700003600000])]


class Query(BaseModel):
    """The query parameters of a route. This class has none. Unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PageQuery(Query):
    """The parameters of every route that answers in pages."""

    limit: PageSize | None = Field(
        default=None, description="at most this many items; the limit `page_size_max` is the default and the maximum"
    )
    cursor: str | None = Field(
        default=None,
        description="the `cursor` of the previous page",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"},
    )


class ListQuery(PageQuery):
    """The parameters of every listing of names."""

    match: str | None = Field(
        default=None,
        description="glob over the whole name: `*` matches any characters, even none, and `?` matches exactly one",
        examples=["user:*"],
    )
    prefix: str = Field(default="", description="only names that begin with this")


QueryT = TypeVar("QueryT", bound=Query)


def decode_text(raw: bytes) -> str:
    """Decode percent-encoding strictly. Raises ``ValueError``, which says what is wrong.

    >>> decode_text(b"a%2Fb")
    'a/b'
    """
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw) is not None:
            raise ValueError("'%' must be followed by two hexadecimal digits")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not valid UTF-8") from None


def parse_query(raw: bytes, model: type[QueryT]) -> QueryT:
    """The parameters in a query string. Raises Problem ``unknown-parameter`` or ``invalid-parameter``."""
    given: dict[str, str] = {}
    for pair in raw.split(b"&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.replace(b"+", b" ").partition(b"=")
        try:
            name = decode_text(raw_name)
        except ValueError as error:
            raise Problem("unknown-parameter", f"a parameter's name cannot be read: {error}") from None
        if name not in model.model_fields:
            raise _unknown_parameter(name, model)
        if name in given:
            raise Problem("invalid-parameter", f"{name} occurs twice", parameter=name)
        try:
            given[name] = decode_text(raw_value)
        except ValueError as error:
            raise Problem("invalid-parameter", f"{name}: {error}", parameter=name) from None
    try:
        return model.model_validate(given)
    except ValidationError as errors:
        place, reason = first_failure(errors)
        name = place[0] if place else ""
        raise Problem("invalid-parameter", f"{name}: {reason}" if name else reason, parameter=name) from None


def _unknown_parameter(name: str, model: type[Query]) -> Problem:
    known = ", ".join(model.model_fields)
    remedy = f"this route takes {known}" if known else "this route takes none"
    return Problem("unknown-parameter", f"{remedy}", parameter=name[:100])


def checked_key(key: str, limits: Limits, what: str = "key", **members: Any) -> str:
    """``key``, if it may be a key. Otherwise raises Problem ``invalid-key``, which says ``what`` it is."""
    try:
        check_key(key, f"the {what}")
    except InvalidName as error:
        raise Problem("invalid-key", str(error), **members) from None
    limit = limits.key_bytes_max
    if len(key) * 4 > limit and (size := len(key.encode())) > limit:
        raise Problem.beyond("invalid-key", f"the {what} has {size} bytes", limit, **members)
    return key


def checked_namespace(name: str, limits: Limits) -> str:
    """``name``, if it may be a namespace. Otherwise raises Problem ``invalid-namespace``."""
    try:
        check_namespace(name)
    except InvalidName as error:
        raise Problem("invalid-namespace", str(error)) from None
    limit = limits.namespace_length_max
    if len(name) > limit:
        raise Problem.beyond("invalid-namespace", f"the namespace has {len(name)} characters", limit)
    return name


def page_size(query: PageQuery, limits: Limits) -> int:
    """How many items a page may have. Raises Problem ``invalid-parameter`` if the request asks for too many."""
    if query.limit is None:
        return limits.page_size_max
    if query.limit > limits.page_size_max:
        detail = f"limit: a page has at most {limits.page_size_max} items"
        raise Problem("invalid-parameter", detail, parameter="limit", limit=limits.page_size_max)
    return query.limit


def write_cursor(key: str | None) -> str | None:
    """The cursor for a page after this key, in its opaque form.

    >>> write_cursor("user:1"), read_cursor("dXNlcjox")
    ('dXNlcjox', 'user:1')
    """
    return None if key is None else base64.urlsafe_b64encode(key.encode()).decode("ascii").rstrip("=")


def read_cursor(cursor: str | None) -> str | None:
    """The key in a cursor. Raises Problem ``invalid-parameter`` if it did not come from a page."""
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = check_key(base64.b64decode(padded, altchars=b"-_", validate=True).decode())
    except (InvalidName, UnicodeError, binascii.Error, ValueError):
        raise Problem("invalid-parameter", "cursor: it did not come from a page", parameter="cursor") from None
    return key
