"""Namespaces: the operations."""

from __future__ import annotations

from collections.abc import Callable

from rstore import calls
from rstore.calls import Steps
from rstore.core.errors import StoreRequestError
from rstore.sealing.rotation import Rotation, rotate
from rstore.store.bare import BareStore, TransportT
from rstore.store.operation import operation


class Namespaces(BareStore[TransportT]):
    """The operations on namespaces, and on everything in one."""

    @operation
    def rotate(self, *, check: bool = False, progress: Callable[[Rotation], object] | None = None) -> Steps[Rotation]:
        """Seal every value of the namespace that is sealed under another key again, with the first key.

        Other clients may read and write meanwhile, and nothing of theirs is overwritten. A rotation that was
        interrupted is run again: it only reads what is under the first key already. A value that does not open does
        not stop it.

        Args:
            check: Only count what is to be done. Nothing is opened or written, so the store may be frozen.
            progress: A function that gets the :class:`Rotation` with the counts so far, after each page of values.

        Returns:
            A :class:`Rotation`, which says what was found, what was done, and which values were left.

        Raises:
            FrozenStoreError: The store is frozen, and ``check`` is False.
            StoreRequestError: The store has no key.

        Example:
            >>> old, new = rstore.generate_key(), rstore.generate_key()
            >>> with Store(url, "vault", old, frozen=False) as vault:
            ...     vault["combination"] = "7-29-13"
            >>> with Store(url, "vault", [new, old], frozen=False) as vault:
            ...     rotation = vault.rotate()
            ...     vault.discard()
            >>> rotation.resealed, rotation.complete
            (1, True)
        """
        if not check:
            self._check_writable()
        if self._codec.sealer is None:
            raise StoreRequestError(
                "a rotation needs keys: open the store with key=[new, old]", code="invalid-parameter"
            )
        return (yield from rotate(self.namespace, self._codec.sealer, check=check, progress=progress))

    @operation
    def namespaces(self) -> Steps[list[str]]:
        """The names of the namespaces that the token reaches, in order.

        Returns:
            A list of the names.

        Example:
            >>> store.namespace in store.namespaces()
            True
        """
        return (yield from self._names(calls.namespaces.list_names))

    @operation
    def discard(self) -> Steps[None]:
        """Delete the namespace and everything in it. The next write creates the namespace again.

        Raises:
            FrozenStoreError: The store is frozen.

        Example:
            >>> etag = store.set("color", "green")
            >>> store.discard()
            >>> store.count()
            0
        """
        self._check_writable()
        yield from calls.namespaces.discard(self.namespace)
