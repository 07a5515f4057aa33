"""Rules for names: namespaces, keys and items."""

from __future__ import annotations

import re
from typing import Final

from rstore.core.errors import beyond

KEY_BYTES_MAX: Final = 512
NAMESPACE_LENGTH_MAX: Final = 128

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


class InvalidName(ValueError):
    """A namespace, key or item that breaks the rules. The message says which rule."""


def check_namespace(name: str) -> str:
    """Return ``name`` if it may be a namespace: 1 to 128 of ``A-Z a-z 0-9 . _ -``. Otherwise raise InvalidName."""
    if _NAMESPACE.match(name) is None:
        raise InvalidName("a namespace is 1 to 128 characters out of A-Z, a-z, 0-9, '.', '_' and '-'")
    return name


def check_key(key: str, what: str = "the key") -> str:
    """Return ``key`` if it may be a key or an item. Otherwise raise :class:`InvalidName`.

    A key is 1 to 512 bytes of UTF-8 without NUL and without lone surrogates. The message calls it ``what``.

    >>> check_key("a/b?c#d")
    'a/b?c#d'
    """
    if not key:
        raise InvalidName(f"{what} is empty; it needs at least one character")
    if "\0" in key:
        raise InvalidName(f"{what} contains NUL (U+0000), which no name may")
    try:
        size = len(key.encode()) if not key.isascii() else len(key)
    except UnicodeEncodeError:
        raise InvalidName(f"{what} contains a lone surrogate, so it has no UTF-8 form") from None
    if size > KEY_BYTES_MAX:
        raise InvalidName(beyond(f"{what} has {size} bytes", KEY_BYTES_MAX))
    return key
