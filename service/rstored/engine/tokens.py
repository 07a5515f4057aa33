"""Access tokens: how they are made, listed, revoked, rotated and verified.

A token is ``rst_<id>_<secret>``. Its record is a key/value record under its id, in a namespace whose name no user can
write. So backends need nothing special for it, and it expires like any record. Only the SHA-256 of the secret is
stored. The secret is 32 random bytes, which nobody can guess, so a slow hash would add nothing.

A store is closed as soon as a token is made in it, or a service with a token of its own runs on it. It stays closed
when its last token is gone, so revoking a token never lets anybody in.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

import msgspec

from rstored.backends.abc import (
    Commit,
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
from rstored.engine.model import Access, NewToken, Page, TokenInfo, ValidToken
from rstored.engine.namespaces import RESERVED, ensure_namespace
from rstored.engine.once import Once, answers_of
from rstored.limits import Limits
from rstored.problems import Problem, of_storage

GLOB_PATTERN: Final = r"^[A-Za-z0-9._*?-]{1,128}$"
NAMESPACES_MAX: Final = 64
LABEL_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"
LABEL_LENGTH_MAX: Final = 200
# More than three centuries; in milliseconds it is far from the end of int64.
LIFETIME_SECONDS_MAX: Final = 1e10

_GLOB: Final = re.compile(r"[A-Za-z0-9._*?-]{1,128}\Z")
_LABEL: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z")
_TOKEN: Final = re.compile(r"rst_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")
_ID: Final = re.compile(r"[0-9a-f]{16}\Z")
_NOBODY: Final = b"\0" * 32
_WHETHER: Final = answers_of(bool)


class _Record(msgspec.Struct):
    """What is stored of a token, as JSON in the meta of its head. ``previous``: the secret before the last rotation."""

    label: str
    namespaces: tuple[str, ...]
    access: str
    created_ms: int
    secret_sha256: bytes
    previous_sha256: bytes | None = None
    previous_until_ms: int = 0


class Tokens:
    """The tokens of a store. All methods raise :class:`Problem`."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._clock = clock
        self._once = Once(storage, limits, clock)

    async def exist(self) -> bool:
        """Whether a token was ever made in this store, or :meth:`close_store` was called. It stays True for ever."""
        (head,) = await self._storage.read(HeadRead(namespace_place(RESERVED)))
        return head is not None

    async def close_store(self) -> None:
        """Close the store, as the making of its first token does."""

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[None]]:
            return Commit(ensure_namespace(heads, RESERVED, ()), None)
            yield

        if not await self.exist():
            await self._storage.update((namespace_place(RESERVED),), plan)

    async def create(
        self, namespaces: Sequence[str], access: Access, *, label: str = "", lifetime_seconds: float | None = None
    ) -> NewToken:
        """Make a token for the namespaces that match one of these globs. Without a lifetime it never expires.

        Raises ``invalid-body`` with a ``pointer``.
        """
        _check(namespaces, access, label, lifetime_seconds)
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        now = self._clock()
        expires_ms = None if lifetime_seconds is None else now + max(1, int(lifetime_seconds * 1000))
        record = _Record(label, tuple(dict.fromkeys(namespaces)), access.name.lower(), now, _hash(secret))
        place = _place(token_id)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[None]]:
            return Commit([*ensure_namespace(heads, RESERVED, ()), PutHead(place, _head(record, expires_ms))], None)
            yield

        await self._storage.update((place,), plan)
        return NewToken(_text(token_id, secret), _info(token_id, record, expires_ms))

    async def get(self, token_id: str) -> TokenInfo:
        """A token that has not expired. Raises ``token-not-found``."""
        head = await self._read(token_id)
        if head is None:
            raise token_not_found()
        return _info(token_id, _record(head), head.expires_ms)

    async def list(self, *, after: str | None = None, limit: int = 1000) -> Page[TokenInfo]:
        """A page of tokens in order of their ids, without those that have expired."""
        now = self._clock()
        page = await list_page(
            self._storage,
            RESERVED,
            Kind.KV,
            after=after,
            limit=limit,
            accept=lambda _, head: not _expired(head, now),
        )
        return Page([_info(key, _record(head), head.expires_ms) for key, head in page.items], page.cursor)

    async def revoke(self, token_id: str, *, write_id: str | None = None) -> bool:
        """End a token at once. True if it existed."""
        if _ID.match(token_id) is None:
            return False
        place = _place(token_id)
        now = self._clock()

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[bool]]:
            head = heads[place]
            writes: list[Write] = [] if head is None else [DeleteRecord(place)]
            return Commit(writes, head is not None and not _expired(head, now))
            yield

        return await self._once.update((place,), plan, write_id, ("revoke",), _WHETHER)

    async def rotate(self, token_id: str, *, grace_seconds: float = 0) -> NewToken:
        """Give a token a new secret. The last secret stays valid for ``grace_seconds``, and any before it ends at once.

        Raises ``token-not-found``.
        """
        if not 0 <= grace_seconds <= LIFETIME_SECONDS_MAX:
            detail = f"the grace is a number of seconds from 0 to {LIFETIME_SECONDS_MAX:.0f}"
            raise Problem("invalid-body", detail, pointer="/grace_seconds")
        if _ID.match(token_id) is None:
            raise token_not_found()
        place = _place(token_id)
        secret = secrets.token_urlsafe(32)
        now = self._clock()

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[TokenInfo]]:
            head = heads[place]
            if head is None or _expired(head, now):
                raise token_not_found()
            record = _record(head)
            record.previous_sha256 = record.secret_sha256 if grace_seconds else None
            record.previous_until_ms = now + int(grace_seconds * 1000)
            record.secret_sha256 = _hash(secret)
            writes = [PutHead(place, _head(record, head.expires_ms))]
            return Commit(writes, _info(token_id, record, head.expires_ms))
            yield

        return NewToken(_text(token_id, secret), await self._storage.update((place,), plan))

    async def verify(self, text: str) -> ValidToken | None:
        """The token with this text, or None. An unknown id and a wrong secret take the same time.

        Raises ``tokens-lost`` if the storage has no record that a token was ever made in it.
        """
        match = _TOKEN.match(text)
        if match is None:
            return None
        token_id, secret = match.groups()
        sent = _hash(secret)
        head, closed = await self._storage.read(HeadRead(_place(token_id)), HeadRead(namespace_place(RESERVED)))
        if closed is None:
            raise tokens_lost()
        if head is not None and _expired(head, self._clock()):
            head = None
        record = None if head is None else _record(head)
        is_current = hmac.compare_digest(sent, record.secret_sha256 if record else _NOBODY)
        is_previous = hmac.compare_digest(sent, (record.previous_sha256 if record else None) or _NOBODY)
        if head is None or record is None:
            return None
        token = _info(token_id, record, head.expires_ms)
        if is_current:
            return ValidToken(token, head.expires_ms)
        if is_previous and record.previous_until_ms > self._clock():
            return ValidToken(token, min(record.previous_until_ms, head.expires_ms or record.previous_until_ms))
        return None

    async def _read(self, token_id: str) -> Head | None:
        if _ID.match(token_id) is None:
            return None
        head: Head | None
        (head,) = await self._storage.read(HeadRead(_place(token_id)))
        return None if head is None or _expired(head, self._clock()) else head


def _check(namespaces: Sequence[str], access: Access, label: str, lifetime_seconds: float | None) -> None:
    """Raise Problem ``invalid-body`` if no token can have these properties."""
    if not 1 <= len(namespaces) <= NAMESPACES_MAX:
        detail = f"a token is for 1 to {NAMESPACES_MAX} namespaces or globs of them; `*` means all"
        raise Problem("invalid-body", detail, pointer="/namespaces")
    for number, glob in enumerate(namespaces):
        if _GLOB.match(glob) is None:
            detail = "a glob of namespaces has 1 to 128 characters out of A-Z, a-z, 0-9, '.', '_', '-', '*' and '?'"
            raise Problem("invalid-body", detail, pointer=f"/namespaces/{number}")
    if access is Access.METRICS and "*" not in namespaces:
        detail = "the metrics are about the whole service: a token with access metrics needs the namespaces `*`"
        raise Problem("invalid-body", detail, pointer="/namespaces")
    if len(label) > LABEL_LENGTH_MAX or _LABEL.match(label) is None:
        detail = f"a label has at most {LABEL_LENGTH_MAX} characters, and no control characters"
        raise Problem("invalid-body", detail, pointer="/label")
    if lifetime_seconds is not None and not 0 < lifetime_seconds <= LIFETIME_SECONDS_MAX:
        detail = f"a lifetime is a number of seconds greater than 0, at most {LIFETIME_SECONDS_MAX:.0f}"
        raise Problem("invalid-body", detail, pointer="/lifetime_seconds")


def _place(token_id: str) -> Place:
    return Place(RESERVED, Kind.KV, token_id)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _text(token_id: str, secret: str) -> str:
    return f"rst_{token_id}_{secret}"


def _head(record: _Record, expires_ms: int | None) -> Head:
    return Head(msgspec.json.encode(record), b"", expires_ms)


@of_storage("a token's record")
def _record(head: Head) -> _Record:
    record = msgspec.json.decode(head.meta, type=_Record)
    _check(record.namespaces, Access[record.access.upper()], record.label, None)
    if {len(record.secret_sha256), len(record.previous_sha256 or _NOBODY)} != {len(_NOBODY)}:
        raise ValueError("not a SHA-256")
    return record


def _expired(head: Head, now: int) -> bool:
    return head.expires_ms is not None and head.expires_ms <= now


def _info(token_id: str, record: _Record, expires_ms: int | None) -> TokenInfo:
    access = Access[record.access.upper()]
    return TokenInfo(token_id, record.label, record.namespaces, access, record.created_ms, expires_ms)


def token_not_found() -> Problem:
    return Problem("token-not-found", "there is no token with this id: it never existed, has expired or was revoked")


def tokens_lost() -> Problem:
    return Problem(
        "tokens-lost",
        "the store is closed, but its storage has no record that a token was ever made in it: it was emptied, or "
        "RSTORED_DSN names another one; restore it, or make a token with `rstored token create`",
    )
