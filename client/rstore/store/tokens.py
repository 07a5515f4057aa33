"""Access tokens: the operations."""

from __future__ import annotations

from collections.abc import Iterable

from rstore import calls
from rstore.calls import Steps
from rstore.calls.arguments import Name, PositiveSeconds, Seconds
from rstore.calls.tokens import AccessLevel, NewToken, Token
from rstore.store.bare import BareStore, TransportT
from rstore.store.operation import operation


class Tokens(BareStore[TransportT]):
    """The operations on access tokens. The store's own token must be one that may administer everything."""

    @operation
    def tokens(self) -> Steps[list[Token]]:
        """Every access token, without its text.

        The token of the store must be one that may administer everything.

        Returns:
            A list of :class:`Token`, in order of id.

        Raises:
            StoreAccessError: The token of the store may not do this, or the service has no token yet.

        Example:
            >>> new = admin.create_token("sensors", "read", label="dashboard")
            >>> [token.label for token in admin.tokens() if token.id == new.id]
            ['dashboard']
        """
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
        """Make an access token. The token of the store must be one that may administer everything.

        The SDK sends this once. After a lost answer, look at :meth:`tokens` before you call it again.

        Args:
            namespaces: The names of the namespaces that the token reaches, or globs; one of them, or 1 to 64.
            access: ``"read"``, ``"write"`` or ``"admin"``. ``"metrics"`` reads the metrics of the service and nothing
                else, and takes the namespace ``"*"``.
            label: A text that says what the token is for, at most 200 characters.
            lifetime: The seconds until the token expires, more than 0 and at most 10,000,000,000. None: it lasts until
                it is revoked.

        Returns:
            A :class:`NewToken`. Keep its ``text``: nobody can read it again.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreAccessError: As :meth:`tokens`.

        Example:
            >>> new = admin.create_token("sensors", "read", label="dashboard", lifetime=86_400)
            >>> new.namespaces, new.access
            (['sensors'], 'read')
        """
        self._check_writable()
        globs = [namespaces] if isinstance(namespaces, str) else list(namespaces)
        return (yield from calls.tokens.create(globs, access, label=label, lifetime_seconds=lifetime))

    @operation
    def rotate_token(self, token_id: Name, *, grace: Seconds = 0) -> Steps[NewToken]:
        """Give a token another text. The token of the store must be one that may administer everything.

        The SDK sends this once.

        Args:
            token_id: The id of the token, as :meth:`tokens` shows it.
            grace: For how many seconds more the service also takes the text that the token has now; 0 to
                10,000,000,000.

        Returns:
            A :class:`NewToken` with the new ``text``.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreAccessError: As :meth:`tokens`.
            StoreNotFoundError: There is no such token.

        Example:
            >>> old = admin.create_token("sensors", "read")
            >>> new = admin.rotate_token(old.id, grace=3600)
            >>> new.id == old.id, new.text == old.text
            (True, False)
        """
        self._check_writable()
        return (yield from calls.tokens.rotate(token_id, grace_seconds=grace))

    @operation
    def revoke_token(self, token_id: Name) -> Steps[None]:
        """End a token. Every process of the service refuses it within seconds.

        The token of the store must be one that may administer everything.

        Args:
            token_id: The id of the token, as :meth:`tokens` shows it.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreAccessError: As :meth:`tokens`.
            StoreNotFoundError: There is no such token.

        Example:
            >>> new = admin.create_token("sensors", "read")
            >>> admin.revoke_token(new.id)
            >>> new.id in [token.id for token in admin.tokens()]
            False
        """
        self._check_writable()
        yield from calls.tokens.revoke(token_id)


def _id_of(token: Token) -> str:
    return token.id
