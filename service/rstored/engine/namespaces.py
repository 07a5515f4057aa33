"""Namespaces: their policies, and the rule that writing to one creates it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final

import msgspec

from rstore.encodings import Encoding
from rstored.backends.abc import (
    Commit,
    CountRead,
    DeleteRecord,
    Head,
    HeadRead,
    Kind,
    Place,
    PutHead,
    Query,
    Write,
    namespace_place,
)
from rstored.engine.batching import Storage
from rstored.engine.globs import list_page
from rstored.engine.model import NamespaceInfo, NamespacePolicy, Page
from rstored.engine.once import Once, answers_of
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["RESERVED", "Namespaces", "admit"]

RESERVED: Final = "~tokens"
"""The namespace of the service's own records. No name of a user's has such a character, so none reaches it."""


def admit(heads: Mapping[Place, Head | None], namespace: str, encodings: Iterable[Encoding]) -> list[Write]:
    """The writes that a plan needs before its own to write values of these encodings to ``namespace``.

    ``heads`` is what the plan was given. The writes create the namespace if it is absent; an existing one costs
    none. Raises :class:`Problem` ``sealed-only`` if its policy refuses one of the encodings.
    """
    place = namespace_place(namespace)
    head = heads[place]
    if head is None:
        return [PutHead(place, Head(_DEFAULT_META))]
    if head.meta != _DEFAULT_META:
        policy = _policy(head)
        if policy.sealed_only and any(encoding is not Encoding.SEALED for encoding in encodings):
            raise Problem("sealed-only", "this namespace takes only sealed values: give the client a key")
    return []


class Namespaces:
    """Creates, describes, discards and lists namespaces. Names are already checked by ``rstore.names``."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._clock = clock
        self._once = Once(storage, limits, clock)

    async def create(
        self,
        namespace: str,
        policy: NamespacePolicy | None = None,
        *,
        may_change: bool = True,
        write_id: str | None = None,
    ) -> bool:
        """Create the namespace, or give it ``policy`` if it is there (None: leave it). True if it is new.

        Unless it ``may_change`` another policy, it raises :class:`Problem` ``access-denied`` where there is one.
        """
        place = namespace_place(namespace)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[bool]]:
            head = heads[place]
            if head is not None and policy in (None, _policy(head)):
                return Commit((), answer=False)
            if head is not None and not may_change:
                raise Problem("access-denied", "changing the policy of a namespace takes a token with admin access")
            return Commit((PutHead(place, Head(_meta(policy or NamespacePolicy()))),), answer=head is None)
            yield

        return await self._once.update((place,), plan, write_id, ("create", policy), _WHETHER)

    async def describe(self, namespace: str) -> NamespaceInfo:
        """Policy and counts. Raises :class:`Problem` ``namespace-not-found``."""
        head, counts = await self._storage.read(
            HeadRead(namespace_place(namespace)), CountRead(namespace, self._clock())
        )
        if head is None:
            raise Problem("namespace-not-found", "there is no such namespace; writing to it creates it")
        return NamespaceInfo(namespace, _policy(head), counts[Kind.KV], counts[Kind.TS], counts[Kind.ES])

    async def discard(self, namespace: str, *, write_id: str | None = None) -> bool:
        """Delete the namespace and everything in it; True if it was there."""
        place = namespace_place(namespace)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[bool]]:
            if heads[place] is None:
                return Commit((), answer=False)
            return Commit((DeleteRecord(place),), answer=True)
            yield

        return await self._once.update((place,), plan, write_id, ("discard",), _WHETHER)

    async def list(
        self,
        *,
        match: str | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
        accept: Callable[[str], bool] | None = None,
    ) -> Page[tuple[str, NamespacePolicy]]:
        """A page of namespaces in order of name; ``accept`` hides those that it returns False for."""

        def shown(name: str) -> bool:
            return name != RESERVED and (accept is None or accept(name))

        items: list[tuple[str, Head]] = []
        while True:
            page = await list_page(
                self._storage,
                "",
                Kind.NAMESPACE,
                match=match,
                prefix=prefix,
                after=after,
                limit=limit - len(items),
                accept=lambda name, _: shown(name),
            )
            items += page.items
            # A cursor is a name, so it is one that may be shown, though the search goes on for longer.
            if page.cursor is None or shown(page.cursor):
                return Page([(name, _policy(head)) for name, head in items], page.cursor)
            after = page.cursor


def _meta(policy: NamespacePolicy) -> bytes:
    return msgspec.json.encode(policy._asdict())


def _policy(head: Head) -> NamespacePolicy:
    return NamespacePolicy(**msgspec.json.decode(head.meta))


_DEFAULT_META: Final = _meta(NamespacePolicy())
_WHETHER: Final = answers_of(bool)
