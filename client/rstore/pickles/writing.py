"""Writing pickles that can be read again."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, Final

from rstore.core.errors import StoreEncodingError
from rstore.core.numeric import plain_number
from rstore.pickles.harmless import CONSTRUCTORS, GLOBALS, PATHS, Refusal, type_name
from rstore.pickles.machine import Machine
from rstore.pickles.reading import loads

_NOT_HARMLESS: Final = "only harmless types are, because loading any other can run code"
_WRITING_SHARE: Final = 0.5
"""The part of the reader's time in which the writer must read the pickle, so that a slower reader can read it too."""


def dumps(value: object, *, trusted: bool = False) -> bytes:
    """The pickle of ``value``, which :func:`loads` with the same ``trusted`` reads.

    Raises :class:`StoreEncodingError`, which names the type that cannot be stored, and the remedy. With ``trusted``
    that is a type that Python itself cannot pickle, or cannot load again. This function tries to load it.

    >>> loads(dumps({1: {"a", "b"}}), trusted=False) == {1: {"a", "b"}}
    True
    >>> import enum
    >>> dumps(enum.Enum("Size", "SMALL").SMALL)
    Traceback (most recent call last):
    rstore.StoreEncodingError: a value of type ...Size is not stored: ...
    """
    try:
        return _harmless_pickle(value)
    except StoreEncodingError:
        if not trusted:
            raise
    data = _pickled(pickle.Pickler, value)
    kind, found = type(value), type(loads(data, trusted=True))
    if found is not kind:
        raise StoreEncodingError(f"a value of type {type_name(kind)} would come back as one of type {type_name(found)}")
    return data


def _harmless_pickle(value: object) -> bytes:
    data = _pickled(_HarmlessPickler, value)
    try:
        Machine(data, share=_WRITING_SHARE).run()
    except Exception as error:
        reason = str(error) if isinstance(error, Refusal) else f"the reader stops at it ({type(error).__name__})"
        raise _beyond(f"a value of type {type_name(type(value))}", reason) from None
    return data


def _pickled(pickler: type[pickle.Pickler], value: object) -> bytes:
    buffer = io.BytesIO()
    try:
        pickler(buffer, protocol=5).dump(value)
    except StoreEncodingError:
        raise
    except Exception as error:
        # Pickling runs methods of the value's classes, which may raise anything.
        raise StoreEncodingError(f"a value of type {type_name(type(value))} cannot be pickled: {error}") from error
    return buffer.getvalue()


def _beyond(what: str, reason: str) -> StoreEncodingError:
    return StoreEncodingError(
        f"{what} is not stored: {reason}; convert it, or open the store with trust_pickle=True, here and to read it"
    )


class _HarmlessPickler(pickle.Pickler):
    """Python's pickler for the types of the table and no others. It writes each of them as the call of a constructor.

    It refuses subclasses, because they would come back as something else. It writes a number of another type as the
    number that it is equal to.
    """

    def reducer_override(self, value: Any) -> Any:
        # Python's pickler calls this for everything but plain data.
        kind = type(value)
        if isinstance(value, type):
            if any(value is named for named in GLOBALS.values()):
                return NotImplemented
            raise _beyond(f"the class {type_name(value)}", _NOT_HARMLESS)
        if kind in _REDUCERS:
            return _REDUCERS[kind](value)
        if kind in CONSTRUCTORS or value is ... or value is NotImplemented:
            return NotImplemented
        number = plain_number(value)
        if number is not None:
            return type(number), (number,)
        raise _beyond(f"a value of type {type_name(kind)}", _NOT_HARMLESS)


def _reduce_uuid(value: uuid.UUID) -> tuple[type, tuple[str]]:
    # Its own reduction sets state on a bare object. This one drops the safety hint of uuid1, which equality ignores.
    return uuid.UUID, (value.hex,)


def _reduce_zone(value: zoneinfo.ZoneInfo) -> Any:
    # Its own reduction calls a private method through getattr. A zone without a key fails as it does there.
    return (zoneinfo.ZoneInfo, (value.key,)) if value.key else value.__reduce__()


def _reduce_counter(value: collections.Counter[Any]) -> tuple[Any, ...]:
    # Its own reduction copies a dict when it is loaded. A pickle that shares the dict would multiply memory.
    return collections.Counter, (), None, None, iter(value.items())


def _reduce_path(value: pathlib.PurePath) -> tuple[type, tuple[str]]:
    # Its own reduction shares the parts of paths in one folder, so that few bytes would make many long paths.
    return type(value), (str(value),)


_REDUCERS: Final[dict[type, Callable[[Any], Any]]] = {
    uuid.UUID: _reduce_uuid,
    zoneinfo.ZoneInfo: _reduce_zone,
    collections.Counter: _reduce_counter,
    **dict.fromkeys(PATHS, _reduce_path),
}
"""Types whose own reduction needs more than the call of a constructor, or would exceed the reader's bounds."""
