"""Sealing: values are encrypted by the client, each bound to the place it is stored at.

An envelope opens only with the right key *and* at the place it was sealed for: namespace, kind and key are in the
derivation of the encryption key; a point's timestamp and an event's timestamp, item and operator are
authenticated with it. So a service that alters, swaps or moves ciphertexts is found out. ``docs/sealing.md``
describes the envelope, ``docs/sealing-vectors.json`` has test vectors.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, NoReturn, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rstore.core.encodings import Encoding, Value
from rstore.core.errors import StoreDecryptionError, StoreEncodingError, StoreRequestError

__all__ = [
    "Context",
    "EventContext",
    "PairContext",
    "PointContext",
    "Sealer",
    "generate_key",
    "key_id_of",
    "new_apply_id",
    "pack",
    "unpack",
]

_KEY_BYTES: Final = 32
_KEY_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{43}=\Z")
_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_END: Final = len(_VERSION) + _KEY_ID_BYTES
_NONCE_END: Final = _HEAD_END + _NONCE_BYTES
_ENVELOPE_BYTES_MIN: Final = _NONCE_END + 1 + _TAG_BYTES
_SUBKEYS_CACHED_MAX: Final = 4096
_POINT_KIND: Final = "ts"
_FERNET_PREFIX: Final = b"gAAAA"
_INNER_ENCODINGS: Final = (Encoding.JSON, Encoding.BYTES, Encoding.PICKLE)
_APPLY_ID_BYTES: Final = 12
_WITH_APPLY_ID: Final = 0x10
"""Is added to the encoding byte of an event's plaintext when an apply id follows it."""
_int64: Final = struct.Struct(">q").pack


def generate_key() -> str:
    """A new key: 32 random bytes in URL-safe base64, 44 characters.

    >>> len(generate_key())
    44
    """
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


def new_apply_id() -> bytes:
    """A random id for the events of one apply: the same in all of them, and in each attempt to store them."""
    return os.urandom(_APPLY_ID_BYTES)


# --- what is sealed, and where -----------------------------------------------------------------------------


def pack(value: Value) -> bytes:
    """The plaintext that sealing encrypts: the encoding as one byte, then the data.

    >>> pack(Value(Encoding.JSON, b"1"))
    b'\\x001'
    """
    encoding, data = value
    if encoding == Encoding.SEALED:
        raise StoreEncodingError("the value is sealed already; it cannot be sealed once more")
    return bytes((encoding,)) + data


def unpack(plaintext: bytes) -> Value:
    """The value in an opened plaintext; :class:`StoreDecryptionError` if no value can begin with its first byte."""
    if not plaintext or plaintext[0] >= len(_INNER_ENCODINGS):
        raise StoreDecryptionError("the value opens, but what is in it is no value")
    return Value(_INNER_ENCODINGS[plaintext[0]], plaintext[1:])


class PairContext(NamedTuple):
    """The place of a key/value pair."""

    namespace: str
    key: str

    @property
    def kind(self) -> str:
        """What the place is of; part of the subkey's derivation."""
        return "kv"

    def authenticated(self) -> bytes:
        """What is authenticated beside the envelope's head; nothing, as the subkey says it all."""
        return b""


class PointContext(NamedTuple):
    """The place of a time series' point. ``timestamp`` is an int64."""

    namespace: str
    key: str
    timestamp: int

    @property
    def kind(self) -> str:
        """What the place is of; part of the subkey's derivation."""
        return _POINT_KIND

    def authenticated(self) -> bytes:
        """What is authenticated beside the envelope's head: the timestamp."""
        return _timestamp(self.timestamp)


class EventContext(NamedTuple):
    """The place of an event. ``timestamp`` is POSIX milliseconds, an int64; ``op`` the operator's name."""

    namespace: str
    key: str
    timestamp: int
    item: str
    op: str

    @property
    def kind(self) -> str:
        """What the place is of; part of the subkey's derivation."""
        return "es"

    def authenticated(self) -> bytes:
        """What is authenticated beside the envelope's head: timestamp, item and operator."""
        return _timestamp(self.timestamp) + _prefixed(self.item) + _prefixed(self.op)


Context: TypeAlias = PairContext | PointContext | EventContext


def _timestamp(timestamp: int) -> bytes:
    try:
        return _int64(timestamp)
    except struct.error:
        raise _beyond_int64() from None


def _beyond_int64() -> StoreRequestError:
    return StoreRequestError("a timestamp is an int from -2**63 to 2**63-1", code="invalid-parameter")


def _prefixed(text: str) -> bytes:
    """``text`` in UTF-8 behind its length, so that no two lists of texts read the same."""
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


# --- keys --------------------------------------------------------------------------------------------------


class _Key:
    """One key. The bytes themselves are kept inside an HMAC object, out of sight of reprs and tracebacks."""

    __slots__ = ("_extracted", "cipher", "fernet", "head")

    def __init__(self, master: bytes, *, with_fernet: bool) -> None:
        # HKDF's extract step with its default salt. A 32-byte output is then one HMAC away (RFC 5869).
        extracted = hmac.digest(bytes(32), master, "sha256")
        self._extracted = hmac.new(extracted, digestmod=hashlib.sha256)
        self.head = _VERSION + self._derive(b"rstore/1/kid")[:_KEY_ID_BYTES]
        self.fernet = Fernet(base64.urlsafe_b64encode(master)) if with_fernet else None
        # Deriving costs several times what sealing a point does.
        self.cipher = functools.lru_cache(_SUBKEYS_CACHED_MAX)(self._cipher)

    def __repr__(self) -> str:
        return f"<key {self.id}>"

    @property
    def id(self) -> str:
        """The key id in hexadecimal; it says nothing of the key."""
        return self.head[len(_VERSION) :].hex()

    def _cipher(self, namespace: str, kind: str, key: str) -> AESGCM:
        return AESGCM(self._derive(b"rstore/1/seal" + _prefixed(namespace) + _prefixed(kind) + _prefixed(key)))

    def _derive(self, info: bytes) -> bytes:
        expanding = self._extracted.copy()
        expanding.update(info + b"\x01")
        return expanding.digest()


def _decode_key(key: object) -> bytes | None:
    """The 32 bytes of a key, or None if it is not one."""
    # A subclass may have methods of its own.
    text = bytes.decode(key, "latin-1") if isinstance(key, bytes) else key
    if not isinstance(text, str) or _KEY_TEXT.match(text) is None:
        return None
    return base64.urlsafe_b64decode(str.encode(text, "ascii"))


def _decode_keys(keys: object) -> list[bytes | None]:
    """The 32 bytes of a key or of several, and None for what is not one."""
    if not isinstance(keys, str | bytes) and isinstance(keys, Iterable):
        try:
            several = iter(keys)
        except TypeError:
            # An array of no dimension says that it is iterable.
            several = iter((None,))
        return list(map(_decode_key, several))
    return [_decode_key(keys)]


def key_id_of(value: Value) -> str | None:
    """The id of the key that a sealed value names, in hexadecimal; None if it is no envelope. Nothing is decrypted."""
    encoding, envelope = value
    if encoding != Encoding.SEALED or envelope[:1] != _VERSION or len(envelope) < _ENVELOPE_BYTES_MIN:
        return None
    return envelope[len(_VERSION) : _HEAD_END].hex()


# --- sealing and opening -----------------------------------------------------------------------------------


class Sealer:
    """Seals with the first of its keys, opens with any of them.

    ``keys`` is one key or a sequence of keys, as :func:`generate_key` makes them. To rotate, put the new key first
    and keep the old ones until every value is rewritten. ``accept_fernet`` also opens the Fernet tokens of
    rlib-store (pickles, which are bound to no place). Raises :class:`StoreRequestError` for what is not a key.
    Safe to share between threads.

    >>> sealer = Sealer(generate_key())
    >>> place = PointContext("default", "temperature", 0)
    >>> sealed = sealer.seal(Value(Encoding.JSON, b"21.5"), place)
    >>> sealer.open(sealed, place)
    Value(encoding=<Encoding.JSON: 0>, data=b'21.5')
    >>> sealer.open(sealed, place._replace(timestamp=1))
    Traceback (most recent call last):
    rstore.StoreDecryptionError: the value does not open here: it was altered, or sealed for another place
    """

    __slots__ = ("_first", "_keys")

    def __init__(self, keys: str | bytes | Sequence[str | bytes], *, accept_fernet: bool = False) -> None:
        self._keys: dict[bytes, _Key] = {}
        masters = _decode_keys(keys)
        # Where the error is raised no variable holds a key.
        del keys
        ordinal = masters.index(None) + 1 if None in masters else 0
        made = [_Key(master, with_fernet=accept_fernet) for master in masters if master is not None]
        del masters
        if ordinal:
            raise StoreRequestError(
                f"key {ordinal} is not a key: a key is 32 bytes in URL-safe base64, which is 44 characters; "
                "rstore.generate_key() makes one",
                code="invalid-parameter",
            )
        if not made:
            message = "the list of keys is empty; the first key seals, so there has to be one"
            raise StoreRequestError(message, code="invalid-parameter")
        self._first = made[0]
        self._keys = {key.head: key for key in made}

    def __repr__(self) -> str:
        return f"Sealer({', '.join(key.id for key in self._keys.values())})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a sealer is neither copied nor pickled, as it holds keys; it may be shared")

    @property
    def key_id(self) -> str:
        """The id of the key that seals."""
        return self._first.id

    def seal(self, value: Value, context: Context) -> Value:
        """Encrypt ``value`` for the place ``context``; the result opens nowhere else."""
        return _seal(self._first, pack(value), context, os.urandom(_NONCE_BYTES))

    def seal_event(self, value: Value, context: EventContext, apply_id: bytes) -> Value:
        """Encrypt an event's value together with its apply id, as :func:`new_apply_id` makes it."""
        packed = pack(value)
        plaintext = bytes((packed[0] + _WITH_APPLY_ID,)) + apply_id + packed[1:]
        return _seal(self._first, plaintext, context, os.urandom(_NONCE_BYTES))

    def open(self, value: Value, context: Context) -> Value:
        """Decrypt what :meth:`seal` or :meth:`seal_event` made for ``context``.

        Raises :class:`StoreDecryptionError` for a value that is not sealed, was altered, was sealed for another
        place, or under a key that this sealer does not have.
        """
        return _unpack_at(context, self._plaintext(value, context))

    def open_event(self, value: Value, context: EventContext) -> tuple[Value, bytes | None]:
        """As :meth:`open`, with the event's apply id; None if an older client sealed it, without one."""
        return _unpack_event(self._plaintext(value, context))

    def reseal(self, value: Value, context: Context) -> Value:
        """Open a value, and seal all that is in it with the first key. Raises as :meth:`open` does."""
        plaintext = self._plaintext(value, context)
        _unpack_at(context, plaintext)
        return _seal(self._first, plaintext, context, os.urandom(_NONCE_BYTES))

    def seal_points(
        self, namespace: str, key: str, timestamps: Sequence[int], plaintexts: Sequence[bytes]
    ) -> list[bytes]:
        """The envelopes of many points of one series; ``plaintexts`` as :func:`pack` makes them."""
        head = self._first.head
        encrypt = self._first.cipher(namespace, _POINT_KIND, key).encrypt
        random = os.urandom(_NONCE_BYTES * len(timestamps))
        nonces = [random[i : i + _NONCE_BYTES] for i in range(0, len(random), _NONCE_BYTES)]
        try:
            return [
                head + nonce + encrypt(nonce, plaintext, head + _int64(timestamp))
                for timestamp, plaintext, nonce in zip(timestamps, plaintexts, nonces, strict=True)
            ]
        except struct.error:
            raise _beyond_int64() from None

    def open_points(
        self, namespace: str, key: str, timestamps: Iterable[int], envelopes: Iterable[bytes]
    ) -> list[bytes]:
        """The plaintexts of many sealed points of one series, for :func:`unpack`; raises as :meth:`open` does."""
        plaintexts = []
        head = b""
        decrypt: Callable[[bytes, bytes, bytes], bytes]
        for timestamp, envelope in zip(timestamps, envelopes, strict=True):
            if envelope[:_HEAD_END] != head or len(envelope) < _ENVELOPE_BYTES_MIN:
                if envelope[:1] != _VERSION:
                    plaintexts.append(pack(self._open_foreign(Value(Encoding.SEALED, envelope))))
                    continue
                sealing_key = self._key_of(envelope)
                head = sealing_key.head
                decrypt = sealing_key.cipher(namespace, _POINT_KIND, key).decrypt
            try:
                plaintext = decrypt(envelope[_HEAD_END:_NONCE_END], envelope[_NONCE_END:], head + _int64(timestamp))
            except InvalidTag:
                raise _altered(f" (timestamp {timestamp})") from None
            except struct.error:
                raise _beyond_int64() from None
            if plaintext[0] >= len(_INNER_ENCODINGS):
                unpack(plaintext)
            plaintexts.append(plaintext)
        return plaintexts

    def _plaintext(self, value: Value, context: Context) -> bytes:
        """What opens at this place; not checked yet."""
        encoding, envelope = value
        if encoding != Encoding.SEALED or envelope[:1] != _VERSION:
            return pack(self._open_foreign(value))
        key = self._key_of(envelope)
        cipher = key.cipher(context.namespace, context.kind, context.key)
        return _decrypt(cipher.decrypt, envelope, key.head + context.authenticated())

    def _key_of(self, envelope: bytes) -> _Key:
        if len(envelope) < _ENVELOPE_BYTES_MIN:
            raise StoreDecryptionError("the sealed value is cut short")
        key = self._keys.get(envelope[:_HEAD_END])
        if key is None:
            key_id = envelope[len(_VERSION) : _HEAD_END].hex()
            raise StoreDecryptionError(f"the value is sealed under key {key_id}, which is not among the given keys")
        return key

    def _open_foreign(self, value: Value) -> Value:
        """Open a Fernet token if that was asked for; refuse everything else that is no envelope of ours."""
        encoding, token = value
        if token[: len(_FERNET_PREFIX)] == _FERNET_PREFIX and encoding in (Encoding.BYTES, Encoding.SEALED):
            fernets = [key.fernet for key in self._keys.values() if key.fernet is not None]
            if not fernets:
                raise StoreDecryptionError("the value is a Fernet token; these are opened only with accept_fernet=True")
            for fernet in fernets:
                try:
                    return Value(Encoding.PICKLE, fernet.decrypt(token))
                except InvalidToken:
                    continue
            raise StoreDecryptionError("the Fernet token does not open: it was altered, or made with another key")
        if encoding != Encoding.SEALED:
            raise StoreDecryptionError("the value is not sealed, and a store with a key takes no value on trust")
        raise StoreDecryptionError("the sealed value is not an envelope of a version that this client knows")


def _unpack_event(plaintext: bytes) -> tuple[Value, bytes | None]:
    """The value in an event's opened plaintext, and its apply id; None in one that an older client sealed."""
    if not plaintext or not plaintext[0] & _WITH_APPLY_ID:
        return unpack(plaintext), None
    end = 1 + _APPLY_ID_BYTES
    if len(plaintext) < end:
        raise StoreDecryptionError("the event opens, but its apply id is cut short")
    return unpack(bytes((plaintext[0] - _WITH_APPLY_ID,)) + plaintext[end:]), plaintext[1:end]


def _unpack_at(context: Context, plaintext: bytes) -> Value:
    """The value in a plaintext that was opened at this place."""
    return _unpack_event(plaintext)[0] if type(context) is EventContext else unpack(plaintext)


def _seal(key: _Key, plaintext: bytes, context: Context, nonce: bytes) -> Value:
    cipher = key.cipher(context.namespace, context.kind, context.key)
    ciphertext = cipher.encrypt(nonce, plaintext, key.head + context.authenticated())
    return Value(Encoding.SEALED, key.head + nonce + ciphertext)


def _decrypt(decrypt: Callable[[bytes, bytes, bytes], bytes], envelope: bytes, authenticated: bytes) -> bytes:
    try:
        return decrypt(envelope[_HEAD_END:_NONCE_END], envelope[_NONCE_END:], authenticated)
    except InvalidTag:
        raise _altered() from None


def _altered(where: str = "") -> StoreDecryptionError:
    return StoreDecryptionError(f"the value does not open here{where}: it was altered, or sealed for another place")
