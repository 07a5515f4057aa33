"""The calls for access tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from rstore.calls.answers import json_body, no_body
from rstore.calls.call import Answer, Call, whole
from rstore.calls.listings import Page, PageShape, page_shape
from rstore.calls.requests import ACCEPT_JSON, JSON_BODY, once, query_string, segment
from rstore.calls.shapes import Int64
from rstore.core.memory import json_memory

AccessLevel: TypeAlias = Literal["metrics", "read", "write", "admin"]


class Token(msgspec.Struct, frozen=True):
    """An access token without its text, as :meth:`Store.tokens` returns it.

    Attributes:
        id: The id, which says nothing of the text.
        label: What its maker says that it is for.
        namespaces: The names and globs of the namespaces that it reaches.
        access: ``metrics``, ``read``, ``write`` or ``admin``.
        created_ms: When it was made, in POSIX milliseconds.
        expires_ms: When it expires, in POSIX milliseconds. None: it lasts until it is revoked.

    Example:
        >>> Token("k3", "dashboard", ["sensors"], "read", 1_700_000_000_000, None).access
        'read'
    """

    id: str
    label: str
    namespaces: list[str]
    access: str
    created_ms: Int64 = msgspec.field(name="created")
    expires_ms: Int64 | None = msgspec.field(name="expires")


class NewToken(Token, frozen=True):
    """A token that was just made, or got another text. It is a :class:`Token` with one more attribute.

    Attributes:
        text: The text that authenticates. Nobody can read it again, and no ``repr`` shows it.

    Example:
        >>> NewToken("k3", "dashboard", ["sensors"], "read", 1_700_000_000_000, None, "secret")
        <NewToken k3>
    """

    text: str = msgspec.field(name="token")

    def __repr__(self) -> str:
        return f"<NewToken {self.id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Consoles and tracebacks may use rich, to which msgspec would give every field.
        return [("id", self.id)]


_TOKEN_PAGE: Final = msgspec.json.Decoder(PageShape[Token])
_NEW_TOKEN: Final = msgspec.json.Decoder(NewToken)


def list_tokens(cursor: str | None = None) -> Call[Page[Token]]:
    """One page of tokens."""

    def decode(answer: Answer) -> Page[Token]:
        page = page_shape(answer, _TOKEN_PAGE)
        answer.spend(json_memory(answer.body))
        return Page(page.items, page.cursor)

    return Call("GET", "/tokens" + query_string(cursor=cursor), whole(decode), ACCEPT_JSON)


def create(
    namespaces: Sequence[str], access: AccessLevel, *, label: str, lifetime_seconds: float | None
) -> Call[NewToken]:
    """Make a token. The call is not repeatable: sent twice, it would make two tokens."""
    body = msgspec.json.encode(
        {"namespaces": namespaces, "access": access, "label": label, "lifetime_seconds": lifetime_seconds}
    )
    return Call("POST", "/tokens", whole(_new_token), JSON_BODY, body, repeatable=False)


def revoke(token_id: str) -> Call[None]:
    """End the token. It is an error if there is no such token."""
    return Call("DELETE", f"/tokens/{segment(token_id)}", whole(no_body(204)), once())


def rotate(token_id: str, *, grace_seconds: float) -> Call[NewToken]:
    """Give the token another text. The call is not repeatable: sent twice, it would end the first new text."""
    body = msgspec.json.encode({"grace_seconds": grace_seconds})
    target = f"/tokens/{segment(token_id)}/rotate"
    return Call("POST", target, whole(_new_token), JSON_BODY, body, repeatable=False)


def _new_token(answer: Answer) -> NewToken:
    return json_body(answer, _NEW_TOKEN, 200, 201)
