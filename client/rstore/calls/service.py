"""The call for what a service says of itself."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rstore.calls.answers import json_body
from rstore.calls.call import Call, whole
from rstore.calls.requests import ACCEPT_JSON

_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def info() -> Call[dict[str, Any]]:
    """The service's description of itself: version, backend and its durability, limits."""
    return Call("GET", "/", whole(lambda answer: json_body(answer, _OBJECT, 200)), ACCEPT_JSON)
