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
from rstored.problems import Problem, of_storage

RESERVED: Final = "~tokens"
"""The namespace of the service's own records. No request reaches it, because no valid name has a ``~``."""


def ensure_namespace(heads: Mapping[Place, Head | None], namespace: str, encodings: Iterable[Encoding]) -> list[Write]:
    """The writes that create the namespace if it does not exist. A plan puts them before its own writes.

    ``heads`` are those that the plan was given. Raises :class:`Problem` ``sealed-only`` if the policy of the namespace
    refuses values of one of these encodings.
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
        """Create the namespace. If it exists, give it ``policy``, or leave it alone if that is None. True if it is new.

        If it exists with another policy and ``may_change`` is False, raises :class:`Problem` ``access-denied``.
        """
        place = namespace_place(namespace)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[bool]]:
            head = heads[place]
            if head is not None and policy in (None, _policy(head)):
                return Commit((), answer=False)
            if head is not None and not may_change:
                raise Problem("access-denied", "only a token with admin access may change the policy of a namespace")
            return Commit((PutHead(place, Head(_meta(policy or NamespacePolicy()))),), answer=head is None)
            yield

        return await self._once.update((place,), plan, write_id, ("create", policy), _WHETHER)

    async def describe(self, namespace: str) -> NamespaceInfo:
        """The policy and the counts of a namespace. Raises :class:`Problem` ``namespace-not-found``."""
        head, counts = await self._storage.read(
            HeadRead(namespace_place(namespace)), CountRead(namespace, self._clock())
        )
        if head is None:
            raise Problem("namespace-not-found", "there is no such namespace; writing to it creates it")
        return NamespaceInfo(namespace, _policy(head), counts[Kind.KV], counts[Kind.TS], counts[Kind.ES])

    async def discard(self, namespace: str, *, write_id: str | None = None) -> bool:
        """Delete the namespace and everything in it. True if it existed."""
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

        It looks only at names that begin with the prefix of one of the globs. Otherwise the time that it takes would
        reveal that others exist.
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
                # A cursor is a name too. Whoever may not see that name does not get it, and the search goes on.
                if shown(page.cursor):
                    return Page(items, page.cursor)
                after = page.cursor
        return Page(items, None)


def _apart(globs: Sequence[Glob]) -> list[Glob]:
    """The globs to search, in order of their prefixes. Those whose names an earlier one covers are left out.

    >>> [glob.prefix for glob in _apart([compile_glob("b"), compile_glob("a*"), compile_glob("ab*")])]
    ['a', 'b']
    """
    found: list[Glob] = []
    for glob in sorted(globs, key=lambda glob: (glob.prefix, glob.exact)):
        covered = found and (glob == found[-1] if found[-1].exact else glob.prefix.startswith(found[-1].prefix))
        if not covered:
            found.append(glob)
    return found


def _meta(policy: NamespacePolicy) -> bytes:
    return msgspec.json.encode(policy._asdict())


@of_storage("a namespace's record")
def _policy(head: Head) -> NamespacePolicy:
    return NamespacePolicy(**_decode_policy(head.meta))


_DEFAULT_META: Final = _meta(NamespacePolicy())
_decode_policy: Final = msgspec.json.Decoder(dict[str, bool]).decode
_WHETHER: Final = answers_of(bool)
