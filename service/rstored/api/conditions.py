"""ETags and the headers that make a request conditional."""

from __future__ import annotations

import re
from typing import Final

from rstored.api.operations import RequestHeader
from rstored.api.replies import Header
from rstored.api.requests import Request
from rstored.engine.model import ANY, Condition
from rstored.problems import Problem

BARE_TAG_PATTERN: Final = "^[!#-~]{1,255}$"
_TAGS: Final = r'((W/)?"[!#-~]*", ?)*((W/)?"[!#-~]*")?'
_TAGS_PATTERN: Final = rf"^(\*|{_TAGS})$"

IF_HEADERS: Final = {
    "If-Match": RequestHeader(
        'only if the ETag is one of these (`"a", "b"`), or with `*` if the key exists; otherwise 412',
        _TAGS_PATTERN,
        "*",
    ),
    "If-None-Match": RequestHeader(
        "only if the ETag is none of these, or with `*` if the key does not exist; otherwise 412, for GET and HEAD 304",
        _TAGS_PATTERN,
        '"a", "b"',
    ),
}

IF_UNCHANGED_HEADER: Final = {
    "If-Match": RequestHeader(
        "only if the points from `start` to `end` have this digest; otherwise 412", rf"^{_TAGS}$", '"5f2b9a70c1d34e86"'
    ),
}
IDEMPOTENCY_HEADER: Final = {
    "Idempotency-Key": RequestHeader(
        "an id of 1 to 128 visible ASCII characters, new for each write; a repeat of the write changes nothing",
        "^[!-~]{1,128}$",
        "3f6a0c1e",
    ),
}

_WRITE_ID: Final = re.compile(rb"[!-~]{1,128}\Z")
_TAG: Final = re.compile(r'[ \t]*(W/)?"([!#-~]*)"[ \t]*(?:,|\Z)')
_BARE: Final = re.compile(r"[!#-~]{1,255}\Z")


def etag_header(etag: str) -> Header:
    """The ETag header for a bare tag."""
    return (b"etag", f'"{etag}"'.encode("ascii"))


def _tags(text: str, name: str, *, weak: bool) -> tuple[str, ...]:
    """The bare tags of a list. Weak tags are left out unless ``weak``. Raises Problem ``invalid-parameter``."""
    text = text.strip(" \t")
    if text == "*":
        return ("*",)
    found: list[str] = []
    position = 0
    while position < len(text):
        match = _TAG.match(text, position)
        if match is None:
            detail = f'{name}: write `*` or entity tags in double quotes, such as "abc", with commas between them'
            raise Problem("invalid-parameter", detail, parameter=name)
        # The tag "*" in quotes would look like the wildcard. No ETag of this service is "*".
        if (weak or not match[1]) and match[2] != "*":
            found.append(match[2])
        position = match.end()
    return tuple(found)


def condition_of(request: Request) -> Condition:
    """The condition in If-Match and If-None-Match. A weak tag never satisfies If-Match."""
    fields = request.fields
    if b"if-match" not in fields and b"if-none-match" not in fields:
        return ANY
    match, none_match = request.header(b"if-match"), request.header(b"if-none-match")
    return Condition(
        None if match is None else _tags(match, "If-Match", weak=False),
        None if none_match is None else _tags(none_match, "If-None-Match", weak=True),
    )


def digests_of(request: Request) -> tuple[str, ...] | None:
    """The digests in If-Match, or None without it. Raises Problem ``invalid-parameter`` for ``*``."""
    text = request.header(b"if-match")
    digests = None if text is None else _tags(text, "If-Match", weak=False)
    if digests == ("*",):
        detail = "If-Match: write the digest of the points in double quotes; `*` is not allowed here"
        raise Problem("invalid-parameter", detail, parameter="If-Match")
    return digests


def write_id_of(request: Request) -> str | None:
    """The id of the write, made from the Idempotency-Key, or None without one. Raises Problem ``invalid-parameter``.

    The id has the id of the token in it, because the answer depends on what the token may do, and nobody may get the
    answer to the write of another token. In an open store, all clients share their ids. A rotated token keeps its id,
    so a repeat is still recognised.
    """
    value = request.fields.get(b"idempotency-key")
    if value is None:
        return None
    if _WRITE_ID.match(value) is None:
        detail = "Idempotency-Key: write 1 to 128 visible ASCII characters"
        raise Problem("invalid-parameter", detail, parameter="Idempotency-Key")
    return f"{request.grant.token_id}/{value.decode('ascii')}"


def not_modified(condition: Condition, etag: str) -> bool:
    """Whether the reader already has the value with this ETag. Raises Problem ``precondition-failed``."""
    if condition.match is not None and etag not in condition.match and "*" not in condition.match:
        raise Problem("precondition-failed", "If-Match: the key has another ETag", etag=etag)
    return condition.none_match is not None and (etag in condition.none_match or "*" in condition.none_match)


def bare_condition(if_match: str | None, if_none_match: str | None) -> Condition:
    """The condition in two members of an object, each a bare ETag or ``*``. Raises Problem ``invalid-body``."""
    if if_match is None and if_none_match is None:
        return ANY
    for name, tag in (("if_match", if_match), ("if_none_match", if_none_match)):
        if tag is not None and _BARE.match(tag) is None:
            raise Problem("invalid-body", f"{name} is an ETag without quotes, or *", pointer=f"/{name}")
    return Condition(
        None if if_match is None else (if_match,),
        None if if_none_match is None else (if_none_match,),
    )
