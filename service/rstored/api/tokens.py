"""``/tokens``: access tokens, for clients with admin access to every namespace."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from rstored.api.access import OPEN, Reach, Rule
from rstored.api.answers import answer
from rstored.api.bodies import read_body, read_optional_body
from rstored.api.conditions import IDEMPOTENCY_HEADER, write_id_of
from rstored.api.operations import Answer, Operations, json_content
from rstored.api.parameters import PageQuery, page_size, read_cursor, write_cursor
from rstored.api.replies import NO_CONTENT, Reply
from rstored.api.requests import Request
from rstored.engine.model import Access, AccessLevel, NewToken, TokenInfo
from rstored.engine.tokens import (
    GLOB_PATTERN,
    LABEL_LENGTH_MAX,
    LABEL_PATTERN,
    LIFETIME_SECONDS_MAX,
    NAMESPACES_MAX,
    token_not_found,
)
from rstored.logs import TokenChange, log_token_change
from rstored.problems import Problem

operations: Final = Operations("tokens", "Access tokens; these routes need admin access to every namespace.")

_RULE: Final = Rule(Access.ADMIN, Reach.SERVICE)

AccessLabel = Annotated[
    AccessLevel,
    Meta(
        description="what the token allows; each value includes those before it; `metrics` allows only `GET /metrics`"
    ),
]
Globs = Annotated[
    list[Annotated[str, Meta(extra_json_schema={"pattern": GLOB_PATTERN})]],
    Meta(
        description="names or globs of the namespaces that the token reaches; `*` means all of them, and the access "
        "`metrics` requires it",
        extra_json_schema={"minItems": 1, "maxItems": NAMESPACES_MAX},
    ),
]
Label = Annotated[
    str,
    Meta(
        description="a note for people: what the token is for",
        extra_json_schema={"maxLength": LABEL_LENGTH_MAX, "pattern": LABEL_PATTERN},
    ),
]
Milliseconds = Annotated[int, Meta(description="POSIX milliseconds")]
TokenText = Annotated[str, Meta(description="the text to send as `Authorization: Bearer …`; it is never shown again")]


class TokenItem(Struct):
    """A token, without its secret."""

    id: str
    label: str
    namespaces: Globs
    access: AccessLabel
    created: Milliseconds
    expires: Milliseconds | None


class IssuedToken(TokenItem):
    """A token with its text."""

    token: TokenText


class TokenList(Struct):
    """A page of tokens, in order of their ids."""

    items: list[TokenItem]
    cursor: str | None


class TokenRequest(Struct, forbid_unknown_fields=True):
    """The token to make."""

    namespaces: Globs
    access: AccessLabel
    label: Label = ""
    lifetime_seconds: Annotated[
        float | None,
        Meta(
            description="how long the token is valid; null: until it is revoked",
            extra_json_schema={"exclusiveMinimum": 0, "maximum": LIFETIME_SECONDS_MAX},
        ),
    ] = None


class TokenRotation(Struct, forbid_unknown_fields=True):
    """How to replace the secret."""

    grace_seconds: Annotated[
        float,
        Meta(
            description="how much longer the old secret is valid",
            extra_json_schema={"minimum": 0, "maximum": LIFETIME_SECONDS_MAX},
        ),
    ] = 0


_ITEM: Final[dict[str, Any]] = {
    "id": "6f3a9c2e51d04b7a",
    "label": "ingest",
    "namespaces": ["team-*"],
    "access": "write",
    "created": 1700000000000,
    "expires": None,
}
_ISSUED: Final = {**_ITEM, "token": "rst_6f3a9c2e51d04b7a_…"}


def _members(token: TokenInfo) -> tuple[str, str, list[str], Any, int, int | None]:
    access = token.access.name.lower()
    return token.id, token.label, list(token.namespaces), access, token.created_ms, token.expires_ms


def _issued(request: Request, token: NewToken, status: int) -> Reply:
    return answer(request, IssuedToken(*_members(token.info), token.text), status)


def _log(request: Request, change: TokenChange, token: TokenInfo | str) -> None:
    log_token_change(
        change, token, token_id=request.grant.token_id, client=request.client, request_id=request.id.decode("ascii")
    )


def _check_closed(request: Request) -> None:
    """Refuse to make tokens in an open store. Whoever made the first one would shut out everybody else."""
    if request.grant is OPEN:
        raise Problem(
            "access-denied",
            "this store is open to everybody: make its first token with `rstored token create` where the service runs",
        )


@operations.add(
    "GET",
    "/tokens",
    summary="List tokens",
    answers={200: Answer("A page of tokens", json_content(TokenList, {"items": [_ITEM], "cursor": None}))},
    both_forms=False,
    rule=_RULE,
)
async def list_tokens(request: Request, query: PageQuery) -> Reply:
    """Tokens in order of their ids, without their secrets, which the service does not store. Send the `cursor` of one
    page to get the next."""
    _check_closed(request)
    page = await request.engine.tokens.list(
        after=read_cursor(query.cursor), limit=page_size(query, request.state.limits)
    )
    items = [TokenItem(*_members(token)) for token in page.items]
    return answer(request, TokenList(items, write_cursor(page.cursor)))


@operations.add(
    "POST",
    "/tokens",
    summary="Make a token",
    answers={201: Answer("The token with its text, which is shown only this once", json_content(IssuedToken, _ISSUED))},
    problems=("storage-full",),
    body=json_content(TokenRequest, {"namespaces": ["team-*"], "access": "write", "label": "ingest"}),
    both_forms=False,
    rule=_RULE,
)
async def create(request: Request) -> Reply:
    """If the answer is lost, do not send this again, because that makes another token. List the tokens and revoke the
    one whose text you do not have."""
    _check_closed(request)
    body = await read_body(request, TokenRequest)
    token = await request.engine.tokens.create(
        body.namespaces, Access[body.access.upper()], label=body.label, lifetime_seconds=body.lifetime_seconds
    )
    _log(request, "created", token.info)
    return _issued(request, token, 201)


@operations.add(
    "GET",
    "/tokens/{token_id}",
    summary="Describe a token",
    answers={200: Answer("The token, without its secret", json_content(TokenItem, _ITEM))},
    problems=("token-not-found",),
    both_forms=False,
    rule=_RULE,
)
async def describe(request: Request) -> Reply:
    """The namespaces that the token reaches, its access, and when it expires."""
    _check_closed(request)
    return answer(request, TokenItem(*_members(await request.engine.tokens.get(request.key))))


@operations.add(
    "DELETE",
    "/tokens/{token_id}",
    summary="Revoke a token",
    answers={204: Answer("The token is revoked")},
    problems=("token-not-found", "storage-full"),
    headers=IDEMPOTENCY_HEADER,
    both_forms=False,
    rule=_RULE,
)
async def revoke(request: Request) -> Reply:
    """Every process refuses the token within `RSTORED_TOKEN_CACHE_SECONDS`. The store stays closed even without tokens.

    Unlike other deletes, this one answers 404 if there is no such token. Otherwise a wrong id could make somebody
    believe that a token is revoked.
    """
    _check_closed(request)
    if not await request.engine.tokens.revoke(request.key, write_id=write_id_of(request)):
        raise token_not_found()
    _log(request, "revoked", request.key)
    return NO_CONTENT


@operations.add(
    "POST",
    "/tokens/{token_id}/rotate",
    summary="Give a token a new secret",
    answers={
        200: Answer("The token with its new text, which is shown only this once", json_content(IssuedToken, _ISSUED))
    },
    problems=("token-not-found", "storage-full"),
    body=json_content(TokenRotation, {"grace_seconds": 3600}),
    body_required=False,
    both_forms=False,
    rule=_RULE,
)
async def rotate(request: Request) -> Reply:
    """The old secret stays valid for `grace_seconds`, by default 0. If the answer is lost, rotate again."""
    _check_closed(request)
    body = await read_optional_body(request, TokenRotation) or TokenRotation()
    token = await request.engine.tokens.rotate(request.key, grace_seconds=body.grace_seconds)
    _log(request, "rotated", token.info)
    return _issued(request, token, 200)
