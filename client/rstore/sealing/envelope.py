"""The envelope: encrypting a value for its place, and opening it there."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.fernet import InvalidToken

from rstore.core.encodings import Encoding, Value
from rstore.core.errors import StoreDecryptionError, StoreEncodingError, StoreRequestError
from rstore.sealing.keys import KEY_ID_BYTES, VERSION, SealingKey, decode_keys
from rstore.sealing.places import POINT_KIND, Context, EventContext, beyond_int64, int64_bytes

_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_END: Final = len(VERSION) + KEY_ID_BYTES
_NONCE_END: Final = _HEAD_END + _NONCE_BYTES
_ENVELOPE_BYTES_MIN: Final = _NONCE_END + 1 + _TAG_BYTES
_FERNET_PREFIX: Final = b"gAAAA"
_INNER_ENCODINGS: Final = (Encoding.JSON, Encoding.BYTES, Encoding.PICKLE)
_APPLY_ID_BYTES: Final = 12
_WITH_APPLY_ID: Final = 0x10
"""This flag in the encoding byte of an event's plaintext says that an apply id follows."""


class Sealer:
    """Seals with the first of its keys, opens with any of them.

    ``keys`` is one key or a sequence of keys, as :func:`generate_key` makes them. To rotate, put the new key first
    and keep the old ones until every value is rewritten. With ``accept_fernet`` it also opens the Fernet tokens of
    rlib-store (pickles, which are bound to no place). It raises :class:`StoreRequestError` for an object that is not a
    key. Threads may share it.

    >>> from rstore.sealing import PointContext, generate_key
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
        self._keys: dict[bytes, SealingKey] = {}
        masters = decode_keys(keys)
        # When the error is raised, no variable holds a key. A traceback may show every variable.
        del keys
        ordinal = masters.index(None) + 1 if None in masters else 0
        made = [SealingKey(master, with_fernet=accept_fernet) for master in masters if master is not None]
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
        """Encrypt ``value`` for the place ``context``. The result opens nowhere else."""
        return _seal(self._first, pack(value), context, os.urandom(_NONCE_BYTES))

    def seal_event(self, value: Value, context: EventContext, apply_id: bytes) -> Value:
        """Encrypt an event's value together with its apply id, as :func:`new_apply_id` makes it."""
        packed = pack(value)
        plaintext = bytes((packed[0] + _WITH_APPLY_ID,)) + apply_id + packed[1:]
        return _seal(self._first, plaintext, context, os.urandom(_NONCE_BYTES))

    def open(self, value: Value, context: Context) -> Value:
        """Decrypt what :meth:`seal` or :meth:`seal_event` made for ``context``.

        Raises :class:`StoreDecryptionError` for a value that is not sealed, was altered, or was sealed for another
        place or under a key that this sealer does not have.
        """
        return _unpack_at(context, self._plaintext(value, context))

    def open_event(self, value: Value, context: EventContext) -> tuple[Value, bytes | None]:
        """The value as :meth:`open` returns it, and the event's apply id, None if an older client sealed it."""
        return _unpack_event(self._plaintext(value, context))

    def reseal(self, value: Value, context: Context) -> Value:
        """Open a value, and seal the same plaintext with the first key. Raises as :meth:`open` does."""
        plaintext = self._plaintext(value, context)
        _unpack_at(context, plaintext)
        return _seal(self._first, plaintext, context, os.urandom(_NONCE_BYTES))

    def seal_points(
        self, namespace: str, key: str, timestamps: Sequence[int], plaintexts: Sequence[bytes]
    ) -> list[bytes]:
        """The envelopes of many points of one series, whose ``plaintexts`` :func:`pack` made."""
        head = self._first.head
        encrypt = self._first.cipher(namespace, POINT_KIND, key).encrypt
        random = os.urandom(_NONCE_BYTES * len(timestamps))
        nonces = [random[i : i + _NONCE_BYTES] for i in range(0, len(random), _NONCE_BYTES)]
        try:
            return [
                head + nonce + encrypt(nonce, plaintext, head + int64_bytes(timestamp))
                for timestamp, plaintext, nonce in zip(timestamps, plaintexts, nonces, strict=True)
            ]
        except struct.error:
            raise beyond_int64() from None

    def open_points(
        self, namespace: str, key: str, timestamps: Iterable[int], envelopes: Iterable[bytes]
    ) -> list[bytes]:
        """The plaintexts of many sealed points of one series, for :func:`unpack`. Raises as :meth:`open` does."""
        plaintexts = []
        head = b""
        decrypt: Callable[[bytes, bytes, bytes], bytes]
        for timestamp, envelope in zip(timestamps, envelopes, strict=True):
            if envelope[:_HEAD_END] != head or len(envelope) < _ENVELOPE_BYTES_MIN:
                if envelope[:1] != VERSION:
                    plaintexts.append(pack(self._open_foreign(Value(Encoding.SEALED, envelope))))
                    continue
                sealing_key = self._key_of(envelope)
                head = sealing_key.head
                decrypt = sealing_key.cipher(namespace, POINT_KIND, key).decrypt
            try:
                plaintext = decrypt(
                    envelope[_HEAD_END:_NONCE_END], envelope[_NONCE_END:], head + int64_bytes(timestamp)
                )
            except InvalidTag:
                raise _altered(f" (timestamp {timestamp})") from None
            except struct.error:
                raise beyond_int64() from None
            if plaintext[0] >= len(_INNER_ENCODINGS):
                unpack(plaintext)
            plaintexts.append(plaintext)
        return plaintexts

    def _plaintext(self, value: Value, context: Context) -> bytes:
        """The plaintext of a value that opens at this place. Its first byte is not checked yet."""
        encoding, envelope = value
        if encoding != Encoding.SEALED or envelope[:1] != VERSION:
            return pack(self._open_foreign(value))
        key = self._key_of(envelope)
        cipher = key.cipher(context.namespace, context.kind, context.key)
        return _decrypt(cipher.decrypt, envelope, key.head + context.authenticated())

    def _key_of(self, envelope: bytes) -> SealingKey:
        if len(envelope) < _ENVELOPE_BYTES_MIN:
            raise StoreDecryptionError("the sealed value is cut short")
        key = self._keys.get(envelope[:_HEAD_END])
        if key is None:
            key_id = envelope[len(VERSION) : _HEAD_END].hex()
            raise StoreDecryptionError(f"the value is sealed under key {key_id}, which is not among the given keys")
        return key

    def _open_foreign(self, value: Value) -> Value:
        """Open a Fernet token if the caller accepts them. Refuse everything else that is not an envelope."""
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


def key_id_of(value: Value) -> str | None:
    """The id of the key that an envelope names, in hexadecimal; None if it is not an envelope. Nothing is decrypted."""
    encoding, envelope = value
    if encoding != Encoding.SEALED or envelope[:1] != VERSION or len(envelope) < _ENVELOPE_BYTES_MIN:
        return None
    return envelope[len(VERSION) : _HEAD_END].hex()


def new_apply_id() -> bytes:
    """A random id for the events of one apply. All of them have it, in each attempt to store them."""
    return os.urandom(_APPLY_ID_BYTES)


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
    """The value in an opened plaintext. Raises :class:`StoreDecryptionError` if its first byte is not an encoding."""
    if not plaintext or plaintext[0] >= len(_INNER_ENCODINGS):
        raise StoreDecryptionError("the value opens, but its first byte is not an encoding")
    return Value(_INNER_ENCODINGS[plaintext[0]], plaintext[1:])


def _unpack_event(plaintext: bytes) -> tuple[Value, bytes | None]:
    """The value in an event's opened plaintext, and its apply id. It is None if an older client sealed the event."""
    if not plaintext or not plaintext[0] & _WITH_APPLY_ID:
        return unpack(plaintext), None
    end = 1 + _APPLY_ID_BYTES
    if len(plaintext) < end:
        raise StoreDecryptionError("the event opens, but its apply id is cut short")
    return unpack(bytes((plaintext[0] - _WITH_APPLY_ID,)) + plaintext[end:]), plaintext[1:end]


def _unpack_at(context: Context, plaintext: bytes) -> Value:
    """The value in a plaintext that was opened at this place."""
    return _unpack_event(plaintext)[0] if type(context) is EventContext else unpack(plaintext)


def _seal(key: SealingKey, plaintext: bytes, context: Context, nonce: bytes) -> Value:
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
