"""What values and points may be stored."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rstore.core.encodings import Encoding, InvalidJSON, NestingTooDeep, Value, parse_json
from rstore.core.points import InvalidPoints
from rstored.limits import Limits
from rstored.problems import Problem, of_storage

_decode_text: Final = msgspec.json.Decoder(msgspec.Raw).decode


def points_problem(error: InvalidPoints) -> Problem:
    """The problem for points that are malformed or refused."""
    members = {} if error.pointer is None else {"pointer": error.pointer}
    return Problem(error.code, str(error), **members)


def check_value(value: Value, limits: Limits, **members: Any) -> None:
    """Raise :class:`Problem` if the value is too large, or if its encoding is JSON and its bytes are not.

    The codes are ``value-too-large``, ``invalid-value`` and ``nesting-too-deep``; ``members`` (a ``pointer``, say)
    become members of the problem.
    """
    encoding, data = value
    size, limit = len(data), limits.value_bytes_max
    if size > limit:
        raise Problem.beyond("value-too-large", f"the value has {size} bytes", limit, **members)
    if encoding is Encoding.JSON:
        try:
            parse_json(data, nesting_max=limits.nesting_max)
        except NestingTooDeep as error:
            raise Problem("nesting-too-deep", str(error), limit=limits.nesting_max, **members) from None
        except InvalidJSON as error:
            raise Problem("invalid-value", str(error), **members) from None


@of_storage("a value")
def check_stored(value: Value) -> None:
    """Raise Problem ``backend-corrupt`` if a value from the storage should be JSON and is not."""
    if value.encoding is Encoding.JSON:
        if not value.data.isascii():
            value.data.decode()
        _decode_text(value.data)
