"""``/ns``: namespaces."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from rstored.api.access import ANY_READER, Rule
from rstored.api.answers import answer
from rstored.api.bodies import read_optional_body
from rstored.api.conditions import IDEMPOTENCY_HEADER, write_id_of
from rstored.api.operations import Answer, Operations, json_content
from rstored.api.parameters import ListQuery, page_size, read_cursor, write_cursor
from rstored.api.replies import NO_CONTENT, Reply
from rstored.api.requests import Request
from rstored.engine.model import Access, NamespacePolicy

operations: Final = Operations("namespaces", "A namespace holds keys, series and sequences, and a policy for writes.")

SealedOnly = Annotated[bool, Meta(description="whether the namespace refuses values that are not sealed")]


class Policy(Struct, forbid_unknown_fields=True):
    """The policy of a namespace for all writes to it."""

    sealed_only: SealedOnly


class NamespaceItem(Struct):
    """A namespace in a listing."""

    namespace: str
    sealed_only: SealedOnly


class NamespaceList(Struct):
    """A page of namespaces, in order of name."""

    items: list[NamespaceItem]
    cursor: str | None


class NamespaceBody(Struct):
    """A namespace: its policy, and how many keys, series and sequences it holds."""

    namespace: str
    sealed_only: SealedOnly
    kv: int
    ts: int
    es: int


_EXAMPLE: Final[dict[str, Any]] = {"namespace": "team", "sealed_only": False, "kv": 3, "ts": 1, "es": 0}


@operations.add(
    "GET",
    "/ns",
    summary="List namespaces",
    answers={
        200: Answer(
            "A page of namespaces",
            json_content(NamespaceList, {"items": [{"namespace": "team", "sealed_only": False}], "cursor": None}),
        )
    },
    problems=("backend-unavailable",),
    both_forms=False,
    rule=ANY_READER,
)
async def list_namespaces(request: Request, query: ListQuery) -> Reply:
    """The namespaces that the token reaches, in order of name. Send the `cursor` of one page to get the next; it is
    null on the last page."""
    page = await request.engine.namespaces.list(
        match=query.match,
        prefix=query.prefix,
        within=request.grant.globs,
        after=read_cursor(query.cursor),
        limit=page_size(query, request.state.limits),
    )
    items = [NamespaceItem(name, policy.sealed_only) for name, policy in page.items]
    return answer(request, NamespaceList(items, write_cursor(page.cursor)))


@operations.add(
    "PUT",
    "/ns/{namespace}",
    summary="Create a namespace or set its policy",
    answers={
        200: Answer("The namespace existed; it has the policy that was sent", json_content(NamespaceBody, _EXAMPLE)),
        201: Answer("The namespace is new", json_content(NamespaceBody, _EXAMPLE)),
    },
    problems=("backend-unavailable", "storage-full"),
    body=json_content(Policy, {"sealed_only": True}),
    body_required=False,
    headers=IDEMPOTENCY_HEADER,
    both_forms=False,
)
async def create(request: Request) -> Reply:
    """Without a body an existing namespace keeps its policy. Changing the policy needs admin access.

    The first write to a namespace creates it too.
    """
    body = await read_optional_body(request, Policy)
    policy = None if body is None else NamespacePolicy(body.sealed_only)
    created = await request.engine.namespaces.create(
        request.namespace,
        policy,
        may_change=request.grant.allows(request.namespace, Access.ADMIN),
        write_id=write_id_of(request),
    )
    return answer(request, await _body(request), 201 if created else 200)


@operations.add(
    "GET",
    "/ns/{namespace}",
    summary="Describe a namespace",
    answers={200: Answer("The namespace", json_content(NamespaceBody, _EXAMPLE))},
    problems=("namespace-not-found", "backend-unavailable"),
    both_forms=False,
)
async def describe(request: Request) -> Reply:
    """The policy of the namespace, and how many keys, series and sequences it holds."""
    return answer(request, await _body(request))


@operations.add(
    "DELETE",
    "/ns/{namespace}",
    summary="Delete a namespace and everything in it",
    answers={204: Answer("The namespace does not exist any more")},
    problems=("backend-unavailable",),
    headers=IDEMPOTENCY_HEADER,
    both_forms=False,
    rule=Rule(Access.ADMIN),
)
async def discard(request: Request) -> Reply:
    """Delete its keys, series, sequences and policy, all at once."""
    await request.engine.namespaces.discard(request.namespace, write_id=write_id_of(request))
    return NO_CONTENT


async def _body(request: Request) -> NamespaceBody:
    info = await request.engine.namespaces.describe(request.namespace)
    return NamespaceBody(info.namespace, info.policy.sealed_only, info.kv, info.ts, info.es)
