"""Python values and stored values: what is exactly JSON is stored as JSON, and the rest as bytes or a pickle.

"Exactly" includes types: a tuple, an int key or NaN would come back as something else, so they are pickled. So every
language reads plain data, and every value comes back equal and of the same type. Numbers of other types are the
exception: numpy's scalars and their like are stored as the int, float or bool that they are equal to.

A value that could not be read back is refused when it is written: see :mod:`rstore.pickles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from types import NoneType
from typing import Any, Final

import msgspec

from rstore import pickles
from rstore.core.encodings import JSON_INTEGER_MAX, JSON_INTEGER_MIN, Encoding, InvalidJSON, Value, parse_json
from rstore.core.errors import StoreDecryptionError, StoreEncodingError
from rstore.core.memory import Spend, free, json_memory, texts_memory
from rstore.core.numeric import plain_number

_NESTING_MAX: Final = 100
_NUMBER_END: Final = 1e300
"""A number nearer to 0 than this needs no further check. NaN and infinity are not nearer."""

_NUMBERS: Final = frozenset({int, float})
_CONTAINERS_MAX: Final = 1_000_000
_PLAIN_TYPES: Final = frozenset({str, bool, NoneType})
_JSON_TYPES: Final = frozenset({dict, list, str, int, float, bool, NoneType})
_STR: Final = frozenset({str})
_CONTAINER_TYPES: Final = frozenset({dict, list})

_encode: Final = msgspec.json.Encoder(enc_hook=plain_number).encode
_decode: Final = msgspec.json.Decoder().decode


def dump(value: object, *, trusted: bool = False) -> Value:
    """Encode ``value``: what is exactly JSON as ``json``, ``bytes`` as they are, anything else as ``pickle``.

    :func:`load` with the same ``trusted`` reads it. Raises :class:`StoreEncodingError`, which names the type, for a
    value that cannot be stored. Without ``trusted`` these are the values of all types but the harmless ones.

    >>> dump({"a": [1, 2.5, None]})
    Value(encoding=<Encoding.JSON: 0>, data=b'{"a":[1,2.5,null]}')
    >>> dump((1, 2)).encoding.label
    'pickle'
    """
    kind = type(value)
    if kind in _NUMBERS:
        if -_NUMBER_END < value < _NUMBER_END:  # type: ignore[operator]
            return Value(Encoding.JSON, _encode(value))
    elif kind is bytes:
        return Value(Encoding.BYTES, value)  # type: ignore[arg-type]
    if kind in _PLAIN_TYPES or _is_json([value]):
        try:
            return Value(Encoding.JSON, _encode(value))
        except UnicodeEncodeError:
            pass  # A lone surrogate has no UTF-8 form, but a pickle can hold it.
    return Value(Encoding.PICKLE, pickles.dumps(value, trusted=trusted))


def load(value: Value, *, trusted: bool, spend: Spend = free) -> object:
    """Decode what :func:`dump` made. ``trusted`` loads any pickle: see :func:`rstore.pickles.loads`.

    It calls ``spend`` with the bytes of memory that it is about to take.

    Raises :class:`StoreEncodingError`, or :class:`StoreDecryptionError` for a value that is still sealed.

    >>> load(dump({1: (2, 3)}), trusted=False)
    {1: (2, 3)}
    """
    encoding, data = value
    if encoding == Encoding.JSON:
        spend(json_memory(data))
        try:
            return parse_json(data)
        except InvalidJSON as error:
            raise StoreEncodingError(f"the stored value is {error}") from None
    if encoding == Encoding.BYTES:
        return data
    if encoding == Encoding.PICKLE:
        return pickles.loads(data, trusted=trusted, spend=spend)
    raise StoreDecryptionError("the value is sealed; open the store with the key that sealed it")


def dump_numbers(numbers: Iterable[float]) -> list[bytes]:
    """The plaintexts to seal for the numbers of a column: ``sealing.pack(dump(number))`` of each, but faster.

    >>> dump_numbers([1.5, 2])
    [b'\\x001.5', b'\\x002']
    """
    return [b"\0" + _encode(number) for number in numbers]


def load_plaintexts(plaintexts: Sequence[bytes], *, trusted: bool, spend: Spend = free) -> list[object]:
    """The values of opened plaintexts: ``load(sealing.unpack(…), trusted=…)`` of each, but faster.

    >>> load_plaintexts([b"\\x001.5", b"\\x01ab"], trusted=False)
    [1.5, b'ab']
    """
    spend(texts_memory(b"".join(plaintexts), len(plaintexts)))
    try:
        return [
            load(Value(Encoding(plaintext[0]), plaintext[1:]), trusted=trusted, spend=spend)
            if plaintext[0]
            else _decode(plaintext[1:])
            for plaintext in plaintexts
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError, ValueError) as error:
        raise StoreEncodingError(f"the opened value does not decode: {error}") from None


def _is_json(level: list[Any]) -> bool:
    """Whether each of these values is exactly JSON, apart from numbers of other types and text without a UTF-8 form.

    It goes down level by level, so that a few passes in C check each level. A value that contains itself has more
    levels than are allowed, or a level with more containers than are allowed.
    """
    for _ in range(_NESTING_MAX + 1):
        kinds = set(map(type, level))
        if not kinds <= _JSON_TYPES:
            plain: list[Any] = []
            for value in level:
                number = value if type(value) in _JSON_TYPES else plain_number(value)
                if number is None and value is not None:
                    return False
                plain.append(number)
            level, kinds = plain, set(map(type, plain))
        if float in kinds and not all(map(isfinite, _of_kind(float, kinds, level))):
            return False
        if int in kinds:
            numbers = _of_kind(int, kinds, level)
            if max(numbers) > JSON_INTEGER_MAX or min(numbers) < JSON_INTEGER_MIN:
                return False
        if kinds.isdisjoint(_CONTAINER_TYPES):
            return True
        below: list[Any] = []
        containers = 0
        for container in level:
            if type(container) is dict:
                if not _STR.issuperset(map(type, container)):
                    return False
                below.extend(container.values())
            elif type(container) is list:
                below.extend(container)
            else:
                continue
            containers += 1
        if containers > _CONTAINERS_MAX:
            return False
        level = below
        if not level:
            return True
    return False


def _of_kind(kind: type, kinds: set[type], level: list[Any]) -> list[Any]:
    return level if len(kinds) == 1 else [value for value in level if type(value) is kind]
