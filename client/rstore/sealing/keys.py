"""Keys: how to make them, to read them, and to derive subkeys and ids from them."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from typing import Final

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rstore.sealing.places import prefixed

KEY_ID_BYTES: Final = 8
SUBKEYS_CACHED_MAX: Final = 4096
VERSION: Final = b"\x01"
_KEY_BYTES: Final = 32
_KEY_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{43}=\Z")


def generate_key() -> str:
    """A new key for sealing values. Keep it: without it nobody opens what it has sealed.

    Returns:
        32 random bytes in URL-safe base64, which is 44 characters.

    Example:
        >>> len(generate_key())
        44
    """
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


class SealingKey:
    """One key. An HMAC object holds its bytes, where no repr and no traceback shows them."""

    __slots__ = ("_extracted", "cipher", "fernet", "head")

    def __init__(self, master: bytes, *, with_fernet: bool) -> None:
        # HKDF's extract step with its default salt. A 32-byte output is then one HMAC away (RFC 5869).
        extracted = hmac.digest(bytes(32), master, "sha256")
        self._extracted = hmac.new(extracted, digestmod=hashlib.sha256)
        self.head = VERSION + self._derive(b"rstore/1/kid")[:KEY_ID_BYTES]
        self.fernet = Fernet(base64.urlsafe_b64encode(master)) if with_fernet else None
        # To derive a subkey takes several times as long as to seal a point.
        self.cipher = functools.lru_cache(SUBKEYS_CACHED_MAX)(self._cipher)

    def __repr__(self) -> str:
        return f"<key {self.id}>"

    @property
    def id(self) -> str:
        """The key id in hexadecimal. Nobody can conclude the key from it."""
        return self.head[len(VERSION) :].hex()

    def _cipher(self, namespace: str, kind: str, key: str) -> AESGCM:
        return AESGCM(self._derive(b"rstore/1/seal" + prefixed(namespace) + prefixed(kind) + prefixed(key)))

    def _derive(self, info: bytes) -> bytes:
        expanding = self._extracted.copy()
        expanding.update(info + b"\x01")
        return expanding.digest()


def decode_keys(keys: object) -> list[bytes | None]:
    """The 32 bytes of a key, or of each of several. None stands for an object that is not a key."""
    if not isinstance(keys, str | bytes) and isinstance(keys, Iterable):
        try:
            several = iter(keys)
        except TypeError:
            # An array of no dimension claims to be iterable.
            several = iter((None,))
        return list(map(_decode_key, several))
    return [_decode_key(keys)]


def _decode_key(key: object) -> bytes | None:
    """The 32 bytes of a key, or None if it is not one."""
    # A subclass may have other methods of these names.
    text = bytes.decode(key, "latin-1") if isinstance(key, bytes) else key
    if not isinstance(text, str) or _KEY_TEXT.match(text) is None:
        return None
    return base64.urlsafe_b64decode(str.encode(text, "ascii"))
