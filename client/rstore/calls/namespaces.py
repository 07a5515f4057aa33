"""The calls for namespaces."""

from __future__ import annotations

from typing import Final

import msgspec

from rstore.calls.answers import json_body, no_body, problem_code
from rstore.calls.call import Answer, Call, whole
from rstore.calls.listings import Page, PageShape, counted_names, page_shape
from rstore.calls.requests import ACCEPT_JSON, JSON_BODY, once, query_string, segment
from rstore.calls.shapes import NameText, NonNegative


class NamespaceInfo(msgspec.Struct, frozen=True):
    """A namespace: whether it takes only sealed values, and how many keys, series and sequences it holds."""

    namespace: str
    sealed_only: bool
    kv: NonNegative
    ts: NonNegative
    es: NonNegative


class _NamespaceShape(msgspec.Struct):
    namespace: NameText


_NAMESPACE_INFO: Final = msgspec.json.Decoder(NamespaceInfo)
_NAMESPACE_PAGE: Final = msgspec.json.Decoder(PageShape[_NamespaceShape])


def list_names(cursor: str | None = None) -> Call[Page[str]]:
    """One page of the names of the namespaces that the token reaches."""

    def decode(answer: Answer) -> Page[str]:
        page = page_shape(answer, _NAMESPACE_PAGE)
        return Page(counted_names(answer, [item.namespace for item in page.items]), page.cursor)

    return Call("GET", "/ns" + query_string(cursor=cursor), whole(decode), ACCEPT_JSON)


def create(namespace: str, *, sealed_only: bool | None = None) -> Call[NamespaceInfo]:
    """Create the namespace if it does not exist. ``sealed_only`` sets its policy, and None leaves that as it is."""
    body = b"" if sealed_only is None else msgspec.json.encode({"sealed_only": sealed_only})
    headers = JSON_BODY if body else ACCEPT_JSON
    return Call("PUT", f"/ns/{segment(namespace)}", whole(_namespace_info), headers + once(), body)


def info(namespace: str) -> Call[NamespaceInfo | None]:
    """The namespace, or None if it does not exist."""

    def decode(answer: Answer) -> NamespaceInfo | None:
        return None if problem_code(answer, 404) == "namespace-not-found" else _namespace_info(answer)

    return Call("GET", f"/ns/{segment(namespace)}", whole(decode), ACCEPT_JSON)


def discard(namespace: str) -> Call[None]:
    """Delete the namespace and everything in it."""
    return Call("DELETE", f"/ns/{segment(namespace)}", whole(no_body(204)), once())


def _namespace_info(answer: Answer) -> NamespaceInfo:
    return json_body(answer, _NAMESPACE_INFO, 200, 201)
