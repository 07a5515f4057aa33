"""Key/value pairs: the operations."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from rstore import calls
from rstore.calls import SPENDING, Steps
from rstore.calls.arguments import Name, PositiveSeconds
from rstore.core.errors import StoreLimitError, StoreRequestError
from rstore.sealing import PairContext
from rstore.store.base import Base, TransportT, part_of_a_write
from rstore.store.operation import operation

__all__ = ["KEEP", "Entry", "Keep", "KeyValue"]


class Entry(NamedTuple):
    """A key's value, its ETag, and when it expires (POSIX milliseconds, or None)."""

    value: Any
    etag: str
    expires_ms: int | None


class Keep(enum.Enum):
    """The type of :data:`KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "rstore.KEEP"


KEEP: Final = Keep.KEEP
"""As ``ttl``: a key that exists keeps the expiry it has; a new one never expires."""

_KEYS_PER_BATCH: Final = 1_000


class KeyValue(Base[TransportT]):
    """The operations on key/value pairs."""

    @operation
    def get(self, key: Name, default: Any = None) -> Steps[Any]:
        """The value of ``key``, or ``default`` if it is not there. A stored None is a value.

        >>> store.set("color", "green") and store.get("color")
        'green'
        >>> store.get("taste", "unknown")
        'unknown'
        """
        found = yield from calls.kv.get(self.namespace, key)
        if found is None:
            return default
        return self._codec.restore(found.value, PairContext(self.namespace, key), (yield SPENDING))

    @operation
    def entry(self, key: Name) -> Steps[Entry | None]:
        """The value of ``key`` with its ETag and expiry, or None if it is not there."""
        found = yield from calls.kv.get(self.namespace, key)
        if found is None:
            return None
        value = self._codec.restore(found.value, PairContext(self.namespace, key), (yield SPENDING))
        return Entry(value, found.etag, found.expires_ms)

    @operation
    def has(self, key: Name) -> Steps[bool]:
        """Whether ``key`` is there. Its value is not fetched."""
        return (yield from calls.kv.has(self.namespace, key))

    @operation
    def set(
        self,
        key: Name,
        value: Any,
        *,
        ttl: PositiveSeconds | Literal[Keep.KEEP] | None = KEEP,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Steps[str]:
        """Store ``value`` under ``key`` and return its ETag.

        ``ttl`` is seconds, None for never, or :data:`KEEP`. With ``if_match`` (an ETag, or ``"*"`` for any) or
        ``if_absent`` the value is stored only if the key still has that ETag, or is not there:
        :class:`StoreConflictError` if that does not hold.

        >>> etag = store.set("stock", 5)
        >>> store.entry("stock").etag == etag
        True
        >>> store.set("stock", 6, if_match="another")
        Traceback (most recent call last):
        rstore.StoreConflictError: ...
        """
        self._check_writable()
        value = self._codec.store(value, PairContext(self.namespace, key))
        if if_match is not None and if_absent:
            raise StoreRequestError("give if_match or if_absent, not both", code="invalid-parameter")
        return (
            yield from calls.kv.put(
                self.namespace, key, value, ttl=_expiry(ttl), if_match=if_match, if_absent=if_absent
            )
        )

    @operation
    def delete(self, *keys: Name) -> Steps[None]:
        """Delete keys; those that are not there do no harm. A failure may leave some of them deleted and others not."""
        self._check_writable()
        names = list(dict.fromkeys(keys))
        for start in range(0, len(names), _KEYS_PER_BATCH):
            part = names[start : start + _KEYS_PER_BATCH]
            try:
                if len(part) > 1:
                    with part_of_a_write(start):
                        yield from calls.kv.batch(self.namespace, deletes=part)
                    continue
            except StoreRequestError as error:
                # A backend in several parts may not be able to delete these keys in one step.
                if error.code != "batch-not-atomic":
                    raise
            for number, key in enumerate(part, start):
                with part_of_a_write(number):
                    yield from calls.kv.delete(self.namespace, key)

    @operation
    def keys(self) -> Steps[list[str]]:
        """All keys, in order."""
        return (yield from self._names(functools.partial(calls.kv.list_keys, self.namespace)))

    @operation
    def find(self, *pattern: str) -> Steps[list[tuple[str, Any]]]:
        """The pairs whose whole key matches a glob (``*``: any run, ``?``: one character), in order of key.

        Without a pattern: all pairs. With several: those that match any of them.

        >>> _ = store.set_many({"cat/1": "Tom", "cat/2": "Felix", "dog/1": "Rex"})
        >>> store.find("cat/?")
        [('cat/1', 'Tom'), ('cat/2', 'Felix')]
        """
        spend = yield SPENDING
        found: dict[str, Any] = {}
        for match in pattern or (None,):
            pairs = yield from self._listed(functools.partial(calls.kv.find, self.namespace, match), _key_of)
            for key, entry in pairs:
                found[key] = self._codec.restore(entry.value, PairContext(self.namespace, key), spend)
        return sorted(found.items(), key=_key_of)

    @operation
    def count(self) -> Steps[int]:
        """How many keys there are. They are not fetched."""
        info = yield from calls.namespaces.info(self.namespace)
        return 0 if info is None else info.kv

    @operation
    def get_many(self, keys: Iterable[Name]) -> Steps[dict[str, Any]]:
        """The values of those ``keys`` that are there. Up to 1,000 keys are read as of one moment.

        >>> _ = store.set("cow/1", "Bella")
        >>> store.get_many(["cow/1", "cow/2"])
        {'cow/1': 'Bella'}
        """
        spend = yield SPENDING
        names = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        size = _KEYS_PER_BATCH
        start = 0
        while start < len(names):
            asked = names[start : start + size]
            try:
                batch = yield from calls.kv.batch(self.namespace, gets=asked)
            except StoreLimitError:
                # Large values: fewer of them fit into one answer.
                if len(asked) == 1:
                    raise
                size = len(asked) // 2
                continue
            for key, entry in batch.entries:
                found[key] = self._codec.restore(entry.value, PairContext(self.namespace, key), spend)
            start += len(asked)
        return {key: found[key] for key in names if key in found}

    @operation
    def set_many(
        self, mapping: Mapping[Name, Any], *, ttl: PositiveSeconds | Literal[Keep.KEEP] | None = KEEP
    ) -> Steps[dict[str, str]]:
        """Store pairs, all or none, and return their ETags. ``ttl`` as in :meth:`set`."""
        self._check_writable()
        namespace = self.namespace
        sets = [(key, self._codec.store(value, PairContext(namespace, key))) for key, value in mapping.items()]
        expiry = _expiry(ttl)
        return (yield from calls.kv.batch(namespace, sets=sets, ttl=expiry)).etags if sets else {}


def _expiry(ttl: float | Literal[Keep.KEEP] | None) -> str | float | None:
    """A ttl as the wire has it."""
    if ttl is KEEP:
        return None
    return "never" if ttl is None else ttl


def _key_of(pair: tuple[str, Any]) -> str:
    return pair[0]
