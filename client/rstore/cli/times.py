"""Times as people and programs write them, and the timestamps for them: integers of a unit. Pure, and exact."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

UNITS: Final = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Each unit, and the number of decimal places that a second has in it."""

Reader: TypeAlias = Callable[[str], int]
"""Turns text into a timestamp. Raises ``ValueError`` with a reason if it cannot."""

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)\Z", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\Z", re.ASCII)
_FRACTION: Final = re.compile(r"[.,]([0-9]+)", re.ASCII)
_DIRECTIVE: Final = re.compile(r"%(.)", re.DOTALL)
_WITH_YEAR: Final = frozenset("YyGcx")
_UNHEEDED: Final = frozenset("ZUW")
"""Python reads these and ignores them: it would take a time that says UTC for one of another zone."""

_SAMPLE: Final = datetime.datetime(2001, 11, 30, 23, 45, 56, tzinfo=datetime.UTC)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_PLACES_MAX: Final = 100


class UnusableTime(ValueError):
    """Text that is a time of the form, but has no timestamp. The message says why."""


def time_reader(form: str | None, unit: str | None, zone: datetime.tzinfo | None) -> Reader:
    """A reader of times of a form: None for integers as they are, ``iso``, one of :data:`UNITS`, or a strptime format.

    The timestamps are in ``unit``, by default that of the form, or seconds for dates. Dates without a time zone are of
    ``zone``. Raises ValueError if there is no such form.

    >>> time_reader("iso", "ms", None)("2024-01-01T00:00:00.250+01:00")
    1704063600250
    >>> time_reader("s", "ms", None)("1704063600.25")
    1704063600250
    >>> time_reader("%d.%m.%Y %H:%M", "s", datetime.UTC)("01.01.2024 00:00")
    1704067200
    """
    if form is None:
        return _integer
    if form in UNITS:
        shift = UNITS[unit or form] - UNITS[form]
        return lambda text: _scaled(text, shift, unit or form)
    places, stored = UNITS[unit or "s"], unit or "s"
    if form == "iso":
        return lambda text: _iso(text, places, stored, zone)
    if "%" not in form:
        raise ValueError(f"a format of times is iso, {', '.join(UNITS)}, or one of strptime such as %d.%m.%Y %H:%M")
    _check_format(form)
    return lambda text: _formatted(text, form, places, stored, zone)


def time_zone(name: str) -> datetime.tzinfo:
    """A time zone by its name (``Europe/Berlin``, ``UTC``) or offset (``+01:00``); ``ValueError`` if there is none.

    >>> time_zone("+01:30")
    datetime.timezone(datetime.timedelta(seconds=5400))
    """
    if name in ("UTC", "Z"):
        return datetime.UTC
    try:
        if name[:1] in ("+", "-"):
            zone = datetime.datetime.fromisoformat(f"2000-01-01T00:00{name}").tzinfo
            assert zone is not None
            return zone
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("a time zone is UTC, a name such as Europe/Berlin, or an offset such as +01:00") from None


def _check_format(form: str) -> None:
    """Raise ValueError for a format of strptime that reads no times, or that reads other times than are written."""
    directives = set(_DIRECTIVE.findall(form))
    if not directives & _WITH_YEAR:
        raise ValueError("the format has no year, so it does not say which time is meant")
    for directive in sorted(directives & _UNHEEDED):
        raise ValueError(f"%{directive} does not count when Python reads a time; %z reads offsets such as +0100")
    if ("I" in directives) != ("p" in directives):
        raise ValueError("%I is an hour of half a day, and only %p says of which half; %H is an hour of a whole day")
    try:
        datetime.datetime.strptime(_SAMPLE.strftime(form), form)  # noqa: DTZ007 (only whether it can be read)
    except (ValueError, re.error):
        raise ValueError("Python reads no times in this format") from None


def _integer(text: str) -> int:
    if not _INTEGER.match(text):
        hint = ""
        if _NUMBER.match(text):
            hint = "; --time-format s (or ms, us, ns) reads numbers with a fraction"
        elif re.match(r"[0-9]+\D[0-9]+\D[0-9]+", text):
            hint = "; --time-format reads dates"
        raise ValueError(f"the time is not an integer{hint}")
    # int() takes quadratic time. No timestamp has that many digits.
    return int(text[:25])


def _scaled(text: str, shift: int, unit: str) -> int:
    """A number times ten to the ``shift``, if that is an integer."""
    if not _NUMBER.match(text):
        raise ValueError("the time is not a number")
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:
        raise UnusableTime("the time is out of range") from None
    assert isinstance(exponent, int)
    exponent += shift
    # Zeros at the end do not change the number.
    while exponent < 0 and digits and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if not digits:
        return 0
    if exponent < 0:
        raise UnusableTime(f"the time is not a whole number of {unit}; choose a finer --unit")
    if len(digits) + exponent > _PLACES_MAX:
        raise UnusableTime("the time is out of range")
    number = int("".join(map(str, digits)) + "0" * exponent)
    return -number if sign else number


def _iso(text: str, places: int, unit: str, zone: datetime.tzinfo | None) -> int:
    """An ISO 8601 date and time. Digits beyond microseconds, which Python drops, count."""
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("the time is not a date of ISO 8601 such as 2024-01-31T12:00:00Z") from None
    found = _FRACTION.search(text)
    fraction = found[1] if found else ""
    if int(fraction[:6].ljust(6, "0")) != parsed.microsecond:
        raise UnusableTime("the time has a fraction of something other than a second")
    return _counted(parsed, fraction, places, unit, zone)


def _formatted(text: str, form: str, places: int, unit: str, zone: datetime.tzinfo | None) -> int:
    try:
        parsed = datetime.datetime.strptime(text, form)  # noqa: DTZ007 (a zone follows)
    except (ValueError, OverflowError):
        raise ValueError(f"the time does not match the format {form}") from None
    return _counted(parsed, f"{parsed.microsecond:06}", places, unit, zone)


def _counted(parsed: datetime.datetime, fraction: str, places: int, unit: str, zone: datetime.tzinfo | None) -> int:
    """The units since 1970; ``fraction`` is the decimal digits of the second."""
    if parsed.utcoffset() is None:
        if zone is None:
            raise UnusableTime("the time has no time zone; say which with --time-zone")
        earlier, later = (parsed.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
        if earlier != later:
            # When clocks go back, an hour comes twice. When they go forward, an hour is left out.
            raise UnusableTime(f"the time comes twice or never in {zone}: clocks change there")
        parsed = parsed.replace(tzinfo=zone)
    since = parsed.replace(microsecond=0) - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    # An offset may itself have a fraction.
    if since.microseconds:
        raise UnusableTime("the time zone has a fraction of a second")
    if fraction[places:].strip("0"):
        raise UnusableTime(f"the time is not a whole number of {unit}; choose a finer --unit")
    return int(f"{seconds}{'0' * places}") + int(fraction[:places].ljust(places, "0") or "0")
