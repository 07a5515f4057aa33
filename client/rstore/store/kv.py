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
from rstore.store.bare import BareStore, TransportT, part_of_a_write
from rstore.store.operation import operation

_KEYS_PER_BATCH: Final = 1_000


class Entry(NamedTuple):
    """A value with its ETag and its expiry, as :meth:`Store.entry` returns it.

    Attributes:
        value: The value of the key.
        etag: The ETag of the value, without quotes. A write of another value changes it.
        expires_ms: When the key expires, in POSIX milliseconds. None if it never does.

    Example:
        >>> Entry("green", "5f1c", None).expires_ms is None
        True
    """

    value: Any
    etag: str
    expires_ms: int | None


class Keep(enum.Enum):
    """The type of :data:`KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "rstore.KEEP"


KEEP: Final = Keep.KEEP
"""As ``ttl``: a key that exists keeps its expiry, and a new key never expires."""


class KeyValue(BareStore[TransportT]):
    """The operations on key/value pairs."""

    @operation
    def get(self, key: Name, default: Any = None) -> Steps[Any]:
        """The value of ``key``, or ``default`` if the key is not there. A stored None is a value.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            default: What to return if the key is not there.

        Returns:
            The value, equal to the one that was stored and of the same type.

        Raises:
            StoreDecryptionError: The value does not open with the keys of this store, or the store has none.
            StoreEncodingError: The value is a pickle of a type that is not harmless.

        Example:
            >>> etag = store.set("color", "green")
            >>> store.get("color")
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
        """The value of ``key`` with its ETag and its expiry, or None if the key is not there.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Returns:
            An :class:`Entry`, or None.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`get`.

        Example:
            >>> etag = store.set("color", "green", ttl=60)
            >>> entry = store.entry("color")
            >>> entry.value, entry.etag == etag, entry.expires_ms is None
            ('green', True, False)
        """
        found = yield from calls.kv.get(self.namespace, key)
        if found is None:
            return None
        value = self._codec.restore(found.value, PairContext(self.namespace, key), (yield SPENDING))
        return Entry(value, found.etag, found.expires_ms)

    @operation
    def has(self, key: Name) -> Steps[bool]:
        """Whether ``key`` is there. The service does not send the value.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Returns:
            True or False.

        Example:
            >>> store.has("color")
            False
        """
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
        """Store ``value`` under ``key``, and return its ETag.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            value: Plain JSON data, ``bytes``, or an object of another harmless type.
            ttl: The seconds until the key expires, more than 0 and at most 10,000,000,000. None: it never expires.
                :data:`KEEP`: a key that exists keeps its expiry, and a new key never expires.
            if_match: Store the value only if the key still has this ETag. ``"*"``: only if the key is there.
            if_absent: Store the value only if the key is not there. It excludes ``if_match``.

        Returns:
            The ETag of the stored value.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreConflictError: ``if_match`` or ``if_absent`` does not hold. Nothing was stored.
            StoreEncodingError: The value cannot be stored. The message names its type.
            StoreLimitError: The value is larger than the service allows, 8 MiB by default.

        Example:
            >>> etag = store.set("stock", 5)
            >>> etag = store.set("stock", 6, if_match=etag)
            >>> store.set("stock", 7, if_match="another")
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
        """Delete keys. A key that is not there does no harm.

        Args:
            *keys: The keys, each 1 to 512 bytes of UTF-8 without NUL.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreError: The service failed. If ``outcome_unknown`` of the error is True, some keys may be deleted.

        Example:
            >>> etag = store.set("color", "green")
            >>> store.delete("color", "taste")
            >>> store.keys()
            []
        """
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
        """All keys, in order.

        Returns:
            A list of the keys. Their order is that of their code points.

        Example:
            >>> etags = store.set_many({"dog": 4, "cat": 9})
            >>> store.keys()
            ['cat', 'dog']
        """
        return (yield from self._names(functools.partial(calls.kv.list_keys, self.namespace)))

    @operation
    def find(self, *pattern: str) -> Steps[list[tuple[str, Any]]]:
        """The pairs whose whole key matches a glob, in order of key.

        Args:
            *pattern: Globs, in which ``*`` is any run of characters and ``?`` is one character. With several, a key
                matches any of them. With none, every key matches.

        Returns:
            A list of pairs ``(key, value)``.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`get`, for any of the values.

        Example:
            >>> etags = store.set_many({"cat/1": "Tom", "cat/2": "Felix", "dog/1": "Rex"})
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
        """How many keys there are. The service sends neither keys nor values.

        Returns:
            The number of keys; 0 if the namespace does not exist.

        Example:
            >>> etags = store.set_many({"dog": 4, "cat": 9})
            >>> store.count()
            2
        """
        info = yield from calls.namespaces.info(self.namespace)
        return 0 if info is None else info.kv

    @operation
    def get_many(self, keys: Iterable[Name]) -> Steps[dict[str, Any]]:
        """The values of those ``keys`` that are there.

        Args:
            keys: The keys, each 1 to 512 bytes of UTF-8 without NUL. Up to 1,000 keys whose values fit into one
                answer are read at one moment, and more of them in several steps.

        Returns:
            A dict of the values by key, in the order of ``keys``.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`get`, for any of the values.

        Example:
            >>> etag = store.set("cow/1", "Bella")
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
        """Store pairs, all or none, and return their ETags.

        Args:
            mapping: The values by key; at most 10,000 unless the service has another limit.
            ttl: The expiry of every key, as in :meth:`set`.

        Returns:
            A dict of the ETags by key.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreEncodingError: A value cannot be stored. Nothing was stored.
            StoreLimitError: There are more or larger values than the service allows. Nothing was stored.

        Example:
            >>> etags = store.set_many({"cat": "Tom", "dog": "Rex"}, ttl=3600)
            >>> store["dog"]
            'Rex'
        """
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
