"""Listings, page by page."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final, Generic, NamedTuple

import msgspec

from rstore.calls.answers import json_body
from rstore.calls.call import Answer, Call, T, whole
from rstore.calls.requests import ACCEPT_JSON, query_string, target_of
from rstore.calls.shapes import SLOT_BYTES, TUPLE_BYTES, NameText, NonNegative
from rstore.core.errors import StoreProtocolError
from rstore.core.memory import PAGE_ITEMS_MAX

_CURSOR_LENGTH_MAX: Final = 4_096


class Page(NamedTuple, Generic[T]):
    """Part of a listing, in order of key. ``cursor`` fetches the next part. It is None at the end."""

    items: list[T]
    cursor: str | None


class PageShape(msgspec.Struct, Generic[T]):
    """The shape of a page in an answer."""

    items: list[T]
    cursor: Annotated[str, msgspec.Meta(max_length=_CURSOR_LENGTH_MAX)] | None


class _KeyShape(msgspec.Struct):
    key: NameText


class _SizeShape(msgspec.Struct):
    key: NameText
    points: NonNegative = 0
    events: NonNegative = 0


_KEY_PAGE: Final = msgspec.json.Decoder(PageShape[_KeyShape])
_SIZE_PAGE: Final = msgspec.json.Decoder(PageShape[_SizeShape])


def key_list(namespace: str, kind: str, cursor: str | None) -> Call[Page[str]]:
    """One page of the keys of a kind of records: ``kv``, ``ts`` or ``es``."""
    return Call("GET", target_of(namespace, kind, query=query_string(cursor=cursor)), whole(_key_page), ACCEPT_JSON)


def size_list(namespace: str, kind: str, cursor: str | None) -> Call[Page[tuple[str, int]]]:
    """One page of the keys of a kind of records, each with its number of points or events."""
    return Call("GET", target_of(namespace, kind, query=query_string(cursor=cursor)), whole(_size_page), ACCEPT_JSON)


def check_follows(page: Page[Any], names: list[str], cursor: str | None) -> None:
    """Raise unless the page that ``cursor`` fetched goes on with the listing.

    ``names`` are those of its items, behind the last name of the page before.
    """
    if not all(map(str.__lt__, names, names[1:])) or (page.cursor is not None and page.cursor == cursor):
        raise StoreProtocolError("the pages of the listing do not follow each other")


def page_shape(answer: Answer, decoder: msgspec.json.Decoder[PageShape[T]]) -> PageShape[T]:
    return json_body(answer, decoder, 200, items=PAGE_ITEMS_MAX)


def counted_names(answer: Answer, names: list[str]) -> list[str]:
    """The names of a listing, counted."""
    answer.spend(sum(map(sys.getsizeof, names)) + SLOT_BYTES * len(names))
    return names


def _key_page(answer: Answer) -> Page[str]:
    page = page_shape(answer, _KEY_PAGE)
    return Page(counted_names(answer, [item.key for item in page.items]), page.cursor)


def _size_page(answer: Answer) -> Page[tuple[str, int]]:
    page = page_shape(answer, _SIZE_PAGE)
    counted_names(answer, [item.key for item in page.items])
    answer.spend(TUPLE_BYTES * len(page.items))
    return Page([(item.key, item.points + item.events) for item in page.items], page.cursor)
