"""The harmless types: what the names in a pickle may mean, and what each type may be made of."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import functools
import ipaddress
import pathlib
import re
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any, Final

PATHS: Final = (pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path()))
_BOUNDS: Final = (type(None), int, float, str, datetime.datetime, datetime.date, datetime.timedelta)
_INT_BITS_MAX: Final = 32_768
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}\Z")


class Refusal(Exception):
    """The machine refuses a pickle. The message says why."""


def exactly(value: object, *kinds: type) -> Any:
    """``value`` if its type is exactly one of ``kinds``. Otherwise it raises ``TypeError``."""
    if type(value) not in kinds:
        raise TypeError
    return value


def type_name(kind: type) -> str:
    """The name of a type with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _integer(value: object) -> int:
    """An int, if it is small enough for quick arithmetic."""
    number: int = exactly(value, int)
    if number.bit_length() > _INT_BITS_MAX:
        raise ValueError
    return number


def _same(kind: type, value: object) -> object:
    return exactly(value, kind)


def _complex(real: object, imag: object) -> complex:
    return complex(exactly(real, float), exactly(imag, float))


def _range(start: object, stop: object, step: object) -> range:
    return range(_integer(start), _integer(stop), _integer(step))


def _slice(*bounds: object) -> slice:
    start, stop, step = (exactly(bound, *_BOUNDS) for bound in bounds)
    return slice(start, stop, step)


def _zone(value: object) -> Any:
    return exactly(value, type(None), datetime.timezone, zoneinfo.ZoneInfo)


def _datetime(state: object, tzinfo: object = None) -> datetime.datetime:
    # The C constructor would take these bytes as they are. This one checks the range of each part.
    year, month, day, hour, minute, second, high, low = struct.unpack(">HBBBBBBH", exactly(state, bytes))
    return datetime.datetime(
        year, month & 0x7F, day, hour, minute, second, high << 16 | low, tzinfo=_zone(tzinfo), fold=month >> 7
    )


def _date(state: object) -> datetime.date:
    return datetime.date(*struct.unpack(">HBB", exactly(state, bytes)))


def _time(state: object, tzinfo: object = None) -> datetime.time:
    hour, minute, second, high, low = struct.unpack(">BBBBH", exactly(state, bytes))
    return datetime.time(hour & 0x7F, minute, second, high << 16 | low, tzinfo=_zone(tzinfo), fold=hour >> 7)


def _timedelta(days: object, seconds: object, microseconds: object) -> datetime.timedelta:
    return datetime.timedelta(_integer(days), _integer(seconds), _integer(microseconds))


def _timezone(offset: object, *name: object) -> datetime.timezone:
    return datetime.timezone(exactly(offset, datetime.timedelta), *(exactly(part, str) for part in name))


def _zone_info(key: object) -> zoneinfo.ZoneInfo:
    # The key becomes the name of a file of the time zone database, so it must look like the name of a zone.
    if _ZONE.match(exactly(key, str)) is None:
        raise ValueError
    return zoneinfo.ZoneInfo(exactly(key, str))


def _decimal(text: object) -> decimal.Decimal:
    return decimal.Decimal(exactly(text, str))


def _fraction(numerator: object, denominator: object) -> fractions.Fraction:
    return fractions.Fraction(_integer(numerator), _integer(denominator))


def _uuid(text: object) -> uuid.UUID:
    return uuid.UUID(exactly(text, str))


def _default_dict(factory: Any = None) -> collections.defaultdict[Any, Any]:
    # By identity, because an argument may define equality itself.
    if factory is not None and not any(factory is allowed for allowed in _FACTORIES):
        raise TypeError
    return collections.defaultdict(factory)


def _deque(items: object = (), length_max: object = None) -> collections.deque[Any]:
    if items != ():
        raise TypeError
    return collections.deque(maxlen=None if length_max is None else _integer(length_max))


def _ip(kind: type) -> Callable[..., object]:
    return lambda address: kind(exactly(address, int, str))


def _path(kind: type) -> Callable[..., object]:
    return lambda *parts: kind(*(exactly(part, str) for part in parts))


CONSTRUCTORS: Final[dict[Any, Callable[..., object]]] = {
    # The writer stores a number of another type as the number that it is equal to.
    **{kind: functools.partial(_same, kind) for kind in (bool, int, float)},
    complex: _complex,
    range: _range,
    slice: _slice,
    datetime.datetime: _datetime,
    datetime.date: _date,
    datetime.time: _time,
    datetime.timedelta: _timedelta,
    datetime.timezone: _timezone,
    zoneinfo.ZoneInfo: _zone_info,
    decimal.Decimal: _decimal,
    fractions.Fraction: _fraction,
    uuid.UUID: _uuid,
    # No type arguments: they would stay on the dict as an attribute, and would be pickled again.
    collections.OrderedDict: lambda: collections.OrderedDict(),
    collections.Counter: lambda: collections.Counter(),
    collections.defaultdict: _default_dict,
    collections.deque: _deque,
    **{
        kind: _ip(kind)
        for kind in (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        )
    },
    **{kind: _path(kind) for kind in PATHS},
}
_FACTORIES: Final[Sequence[type]] = (
    *(int, float, complex, bool, str, bytes, bytearray, list, tuple, dict, set, frozenset),
    *(collections.OrderedDict, collections.Counter, collections.deque, decimal.Decimal, fractions.Fraction),
)
"""Types that a pickle may also name without making one, such as the factory of a defaultdict."""

GLOBALS: Final[dict[tuple[str, str], object]] = {
    ("builtins", "Ellipsis"): ...,
    ("builtins", "NotImplemented"): NotImplemented,
    **{(kind.__module__, kind.__qualname__): kind for kind in (*_FACTORIES, *CONSTRUCTORS)},
    # Since Python 3.13 the paths say that they live in a private module.
    **{(module, kind.__qualname__): kind for kind in PATHS for module in ("pathlib", "pathlib._local")},
}
