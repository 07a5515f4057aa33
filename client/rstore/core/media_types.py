"""The media types of bodies, by the names that the code has for them: one table for SDK and service."""

from __future__ import annotations

from typing import Final

CSV_MEDIA_TYPE: Final = "text/csv"
JSON_MEDIA_TYPE: Final = "application/json"
MSGPACK_MEDIA_TYPE: Final = "application/msgpack"
NDJSON_MEDIA_TYPE: Final = "application/x-ndjson"
OCTET_STREAM: Final = "application/octet-stream"
PICKLE_MEDIA_TYPE: Final = "application/vnd.rstore.pickle"
POINTS_MEDIA_TYPE: Final = "application/vnd.rstore.points"
PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
SEALED_MEDIA_TYPE: Final = "application/vnd.rstore.sealed"
