"""Spans of time as people write them on a command line: `90d`, `12h`, `30m`, `45s`, `45`."""

from __future__ import annotations

import re
from typing import Final

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"([0-9]{1,10})([smhdw]?)\Z", re.ASCII)


class InvalidDuration(ValueError):
    """A text that is not a span of time. The message says how to write one."""


def parse_duration(text: str) -> int:
    """The seconds of a span: a whole number and s, m, h, d or w. Without a letter it is a number of seconds.

    >>> parse_duration("90d")
    7776000
    """
    match = _DURATION.match(text)
    if match is None:
        raise InvalidDuration("a span of time is a whole number and s, m, h, d or w, like 90d")
    return int(match[1]) * _SECONDS[match[2]]
