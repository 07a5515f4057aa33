"""The rstore SDK: key/value pairs, time series and event sequences on an rstore service, sealed if you like.

>>> import rstore
>>> key = rstore.generate_key()

The rooms of the package are its subpackages. ARCHITECTURE.md says what each is for, and what it may import.
"""

from __future__ import annotations

import importlib
import typing

from rstore.core.errors import (
    FrozenStoreError,
    StoreAccessError,
    StoreAuthenticationError,
    StoreConflictError,
    StoreDecryptionError,
    StoreEncodingError,
    StoreError,
    StoreIntegrityError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreNotFoundError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.version import __version__

if typing.TYPE_CHECKING:
    from rstore.calls.tokens import NewToken, Token
    from rstore.sealing import generate_key
    from rstore.sealing.rotation import Rotation, Unrotated
    from rstore.store import KEEP, AsyncStore, Entry, Store

__all__ = [
    "KEEP",
    "AsyncStore",
    "Entry",
    "FrozenStoreError",
    "NewToken",
    "Rotation",
    "Store",
    "StoreAccessError",
    "StoreAuthenticationError",
    "StoreConflictError",
    "StoreDecryptionError",
    "StoreEncodingError",
    "StoreError",
    "StoreIntegrityError",
    "StoreLimitError",
    "StoreNotAvailableError",
    "StoreNotFoundError",
    "StoreProtocolError",
    "StoreRequestError",
    "Token",
    "Unrotated",
    "__version__",
    "generate_key",
]

# These names are imported when they are first used. The service uses only `rstore.core`, and starts a fifth sooner
# without an HTTP client and cryptography.
_LATE = {
    "KEEP": "store",
    "AsyncStore": "store",
    "Entry": "store",
    "NewToken": "calls.tokens",
    "Rotation": "sealing.rotation",
    "Store": "store",
    "Token": "calls.tokens",
    "Unrotated": "sealing.rotation",
    "generate_key": "sealing",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
