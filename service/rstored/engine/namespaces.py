"""Namespaces: their policies, and the rule that writing to one creates it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from rstore.core.encodings import Encoding
from rstore.core.globs import Glob, compile_glob
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
from rstored.engine.listing import list_page
from rstored.engine.model import NamespaceInfo, NamespacePolicy, Page
from rstored.engine.once import Once, answers_of
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["RESERVED", "Namespaces", "ensure_namespace"]

RESERVED: Final = "~tokens"
"""The namespace of the service's own records. No name of a user's has such a character, so none reaches it."""


def ensure_namespace(heads: Mapping[Place, Head | None], namespace: str, encodings: Iterable[Encoding]) -> list[Write]:
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
    """Creates, describes, discards and lists namespaces. Names are already checked by ``rstore.core.names``."""

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
        within: Sequence[Glob] = (compile_glob("*"),),
    ) -> Page[tuple[str, NamespacePolicy]]:
        """A page of namespaces in order of name, out of those that match one of the globs ``within``.

        No others are looked at but those that begin as one of the globs does: how long it takes would tell of them.
        """
        asked = compile_glob("*" if match is None else match)

        def shown(name: str) -> bool:
            return name != RESERVED and asked.matches(name) and any(glob.matches(name) for glob in within)

        items: list[tuple[str, NamespacePolicy]] = []
        for reached in _apart(within):
            if not (reached.prefix.startswith(prefix) or prefix.startswith(reached.prefix)):
                continue
            if len(items) == limit:
                return Page(items, items[-1][0])
            while True:
                page = await list_page(
                    self._storage,
                    "",
                    Kind.NAMESPACE,
                    match=reached.prefix if reached.exact else match,
                    prefix=max(prefix, reached.prefix, key=len),
                    after=after,
                    limit=limit - len(items),
                    accept=lambda name, _: shown(name),
                )
                items += [(name, _policy(head)) for name, head in page.items]
                if page.cursor is None:
                    break
                # A cursor is a name, so it is one that may be shown, though the search goes on for longer.
                if shown(page.cursor):
                    return Page(items, page.cursor)
                after = page.cursor
        return Page(items, None)


def _apart(globs: Sequence[Glob]) -> list[Glob]:
    """Those of the globs, in order of name, whose prefixes are all that the names begin with that match any."""
    found: list[Glob] = []
    for glob in sorted(globs, key=lambda glob: (glob.prefix, glob.exact)):
        covered = found and (glob == found[-1] if found[-1].exact else glob.prefix.startswith(found[-1].prefix))
        if not covered:
            found.append(glob)
    return found


def _meta(policy: NamespacePolicy) -> bytes:
    return msgspec.json.encode(policy._asdict())


def _policy(head: Head) -> NamespacePolicy:
    return NamespacePolicy(**msgspec.json.decode(head.meta))


_DEFAULT_META: Final = _meta(NamespacePolicy())
_WHETHER: Final = answers_of(bool)
