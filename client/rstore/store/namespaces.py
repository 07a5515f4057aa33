"""Namespaces: the operations."""

from __future__ import annotations

from collections.abc import Callable

from rstore import calls
from rstore.calls import Steps
from rstore.core.errors import StoreRequestError
from rstore.sealing.rotation import Rotation, rotate
from rstore.store.base import Base, TransportT
from rstore.store.operation import operation

__all__ = ["Namespaces"]


class Namespaces(Base[TransportT]):
    """The operations on namespaces, and on all that is in one."""

    @operation
    def rotate(self, *, check: bool = False, progress: Callable[[Rotation], object] | None = None) -> Steps[Rotation]:
        """Seal anew, with the first key, every value of the namespace that is sealed under another one.

        Others may read and write meanwhile: nothing of theirs is overwritten. If it is interrupted, run it again:
        what is done costs no more than to read it. A value that cannot be opened stops nothing; :class:`Rotation`
        names it. With ``check`` nothing is opened or written, only counted, for which a frozen store will do.
        ``progress`` is called after each page with the counts so far.
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
        """The names of the namespaces that the token reaches, in order."""
        return (yield from self._names(calls.namespaces.list_names))

    @operation
    def discard(self) -> Steps[None]:
        """Delete the namespace and everything in it. The next write creates it again."""
        self._check_writable()
        yield from calls.namespaces.discard(self.namespace)
