"""The rstore SDK: key/value pairs, time series and event sequences on an rstore service, sealed if you like.

>>> import rstore
>>> key = rstore.generate_key()
"""

from __future__ import annotations

from rstore.calls import NewToken, Token
from rstore.errors import (
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
from rstore.rotation import Rotation, Unrotated
from rstore.sealing import generate_key
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

__version__ = "0.1.0"
