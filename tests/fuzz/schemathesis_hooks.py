"""What schemathesis must know beyond ``openapi.json``: media types that are not JSON, and which refusals are fair."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

import msgspec
import schemathesis

# What depends on what is stored, or on a limit of this service, which the schema cannot say.
FAIR = {
    "access-denied",
    "answer-too-large",
    "batch-not-atomic",
    "idempotency-conflict",
    "key-not-found",
    "nesting-too-deep",
    "precondition-failed",
    "revision-conflict",
    "sealed-only",
    "sequence-not-found",
    "series-not-found",
    "namespace-not-found",
    "timestamp-taken",
    "token-not-found",
    "unfoldable-event",
}
# Their grammar is in the documentation; OpenAPI has none for them.
OPAQUE = ("application/vnd.rstore.points", "application/x-ndjson", "text/csv")


def msgpack_of(value: Any) -> Any:
    """The value as msgpack has it: bytes for what is base64 in JSON, and no integer beyond 64 bits."""
    if isinstance(value, dict):
        parts = {name: msgpack_of(part) for name, part in value.items()}
        return parts | {"value": raw(parts.get("value"))} if parts.get("encoding", "json") != "json" else parts
    if isinstance(value, list):
        items = [msgpack_of(part) for part in value]
        return [items[0], raw(items[1]), items[2]] if len(items) == 3 and isinstance(items[2], str) else items
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def raw(value: Any) -> Any:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except (binascii.Error, ValueError):
        return value


@schemathesis.serializer("application/msgpack")
def msgpack_body(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(msgpack_of(value))


@schemathesis.deserializer("application/msgpack")
def msgpack_answer(context: Any, response: Any) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.serializer("application/octet-stream", "application/vnd.rstore.sealed", *OPAQUE)
def other_body(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


@schemathesis.check
def refused_only_for_what_no_schema_says(context: Any, response: Any, case: Any) -> None:
    """A request that fits the schema is accepted, unless what is stored or a limit forbids it."""
    fits = case.meta is not None and case.meta.generation.mode.is_positive
    if not fits or response.status_code < 400 or case.method == "HEAD":
        return
    problem = response.json()
    code, place = problem["code"], problem.get("parameter") or problem.get("pointer", "")
    assert (
        code in FAIR
        or "limit" in problem
        # A cursor is opaque; a ttl has no exponent, and OpenAPI has no way to say so.
        or (code == "invalid-parameter" and place in ("cursor", "ttl"))
        # To JSON Schema 1.0 is an integer.
        or (code == "invalid-body" and problem["detail"].endswith(", got float"))
        # What If-Match of a series is about stands in two other parameters.
        or (code in ("invalid-body", "invalid-parameter") and re.search("(of|needs) If-Match", problem["detail"]))
        # Which namespaces a token may have depends on the `access` beside them.
        or (code == "invalid-body" and place == "/namespaces" and "with access metrics" in problem["detail"])
        # A value's form depends on the `encoding` and the operator beside it.
        or (code in ("invalid-value", "invalid-body") and re.search(r"/(value|media_type|points/\d+)$", place))
        or (case.media_type in OPAQUE and code in {"malformed-body", "invalid-body", "body-too-large"})
    ), problem
