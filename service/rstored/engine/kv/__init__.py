"""Key/value pairs: get, put, delete, list and the atomic batch, with conditions and expiry.

A pair is a record. The value of its head is the stored bytes. Its meta is the ETag, the encoding (1 byte), the size of
the value (4 bytes, big-endian) and the media type. No operation sees an entry whose expiry has passed, even if it has
not been erased yet.
"""

from rstored.engine.kv.pairs import TTL_SECONDS_MAX, KeyValues

__all__ = ["TTL_SECONDS_MAX", "KeyValues"]
