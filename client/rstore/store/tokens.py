"""Access tokens: the operations."""

from __future__ import annotations

from collections.abc import Iterable

from rstore import calls
from rstore.calls import Steps
from rstore.calls.arguments import Name, PositiveSeconds, Seconds
from rstore.calls.tokens import AccessLevel, NewToken, Token
from rstore.store.base import Base, TransportT
from rstore.store.operation import operation

__all__ = ["Tokens"]


class Tokens(Base[TransportT]):
    """The operations on access tokens."""

    @operation
    def tokens(self) -> Steps[list[Token]]:
        """Every access token, without its text. This and the next three take a token that may administer everything."""
        return (yield from self._listed(calls.tokens.list_tokens, _id_of))

    @operation
    def create_token(
        self,
        namespaces: str | Iterable[str],
        access: AccessLevel,
        *,
        label: str = "",
        lifetime: PositiveSeconds | None = None,
    ) -> Steps[NewToken]:
        """Make an access token for namespaces (names or globs), to last ``lifetime`` seconds or until it is revoked.

        ``access`` ``metrics`` reads the service's metrics and nothing else; it takes the namespace ``*``.
        Its ``text`` is what to keep. This is sent once and never again: after a lost answer look at ``tokens()``.
        """
        self._check_writable()
        globs = [namespaces] if isinstance(namespaces, str) else list(namespaces)
        return (yield from calls.tokens.create(globs, access, label=label, lifetime_seconds=lifetime))

    @operation
    def rotate_token(self, token_id: Name, *, grace: Seconds = 0) -> Steps[NewToken]:
        """Give a token another text; the one that it has counts for ``grace`` more seconds. It is sent once."""
        self._check_writable()
        return (yield from calls.tokens.rotate(token_id, grace_seconds=grace))

    @operation
    def revoke_token(self, token_id: Name) -> Steps[None]:
        """End a token; StoreNotFoundError if it is not there. Services forget it within seconds."""
        self._check_writable()
        yield from calls.tokens.revoke(token_id)


def _id_of(token: Token) -> str:
    return token.id
