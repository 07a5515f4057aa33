"""Media types: reading a Content-Type, and choosing the offered form that an Accept asks for."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from rstore.core.media_types import CSV_MEDIA_TYPE, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, NDJSON_MEDIA_TYPE
from rstored.problems import Problem

_MEDIA_TYPE_LENGTH_MAX: Final = 255

# In order of preference. The first is used if the request asks for no form, or likes all equally.
JSON_FORMS: Final = (JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE)

_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# A blank can match only one place of the pattern. Otherwise a failing match would try every choice.
_PARAMETER: Final = rf';[ \t]*(?:({_NAME})=({_NAME}|"(?:[ !#-\[\]-~]|\\[ -~])*")[ \t]*)?'
_MEDIA_TYPE: Final = re.compile(rf"({_NAME}/{_NAME})[ \t]*((?:{_PARAMETER})*)\Z")
_PARAMETERS: Final = re.compile(_PARAMETER)


class ContentType(NamedTuple):
    """A media type: ``essence`` (``type/subtype``, lower case) and the ``text`` as it was sent.

    ``is_form`` says whether it is the type of forms, which curl also gives to everything that it sends with ``-d``.
    """

    essence: str
    text: str
    is_form: bool = False


@lru_cache(maxsize=512)
def parse_content_type(text: str) -> ContentType:
    """Read a Content-Type. Raises Problem ``unsupported-media-type`` if it is none, or text that is not UTF-8 JSON.

    >>> parse_content_type("Application/JSON; charset=utf-8").essence
    'application/json'
    """
    text = text.strip(" \t")
    if len(text) > _MEDIA_TYPE_LENGTH_MAX:
        raise Problem("unsupported-media-type", f"a media type has at most {_MEDIA_TYPE_LENGTH_MAX} characters")
    match = _MEDIA_TYPE.match(text)
    if match is None:
        if _is_form(text.partition(";")[0].rstrip(" \t").lower()):
            raise form_refused(f"-H 'Content-Type: {JSON_MEDIA_TYPE}', or what else the body is")
        raise Problem("unsupported-media-type", "the media type is not type/subtype with well-formed parameters")
    essence = match[1].lower()
    if essence in (JSON_MEDIA_TYPE, NDJSON_MEDIA_TYPE, CSV_MEDIA_TYPE):
        for name, value in _PARAMETERS.findall(match[2]):
            if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
                raise Problem("unsupported-media-type", f"{essence} is read as UTF-8 only")
    return ContentType(essence, text, _is_form(essence))


def _is_form(essence: str) -> bool:
    return essence == "application/x-www-form-urlencoded" or essence.startswith("multipart/")


def form_refused(remedy: str) -> Problem:
    """The problem of a body with the media type of a form. ``remedy`` has the options of curl for another type."""
    detail = (
        f"forms are refused, and curl declares every body to be a form unless a header says otherwise: send {remedy}"
    )
    return Problem("unsupported-media-type", detail)


@lru_cache(maxsize=512)
def negotiate(accept: str, offered: tuple[str, ...]) -> str | None:
    """The offered form that ``accept`` prefers, and the first one of equals. None if it takes none of them.

    >>> negotiate("text/csv;q=0.5, application/msgpack", ("application/json", "application/msgpack"))
    'application/msgpack'
    """
    ranges: dict[str, float] = {}
    for element in accept.split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter[:2].lower() == "q=":
                quality = _quality(parameter[2:])
        if name:
            ranges[name.lower()] = quality
    if not ranges:
        return offered[0]

    best, best_quality = None, 0.0
    for form in offered:
        for candidate in (form, form.partition("/")[0] + "/*", "*/*"):
            if candidate in ranges:
                if ranges[candidate] > best_quality:
                    best, best_quality = form, ranges[candidate]
                break
    return best


def _quality(text: str) -> float:
    """The weight of a media range. A malformed weight counts as a refusal.

    >>> _quality("0.5"), _quality("high")
    (0.5, 0.0)
    """
    return float(text) if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", text) else 0.0
