"""The way of a value: from a Python object to what is stored, and back.

On its way out a value is dumped, then sealed. On its way in it is opened, then loaded. A store without a key leaves out
sealing and opening. Methods that read call ``spend`` with the bytes of memory that they are about to take.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, TypeAlias

from rstore.codec.values import dump, dump_numbers, load, load_plaintexts
from rstore.core.encodings import Encoding, InvalidJSON, Value, parse_json
from rstore.core.errors import StoreDecryptionError, StoreEncodingError, StoreRequestError
from rstore.core.memory import Spend, json_memory, texts_memory
from rstore.core.operators import UNARY
from rstore.core.points import Cells, InvalidPoints, Points, stored_text
from rstore.sealing.envelope import Sealer, pack, unpack
from rstore.sealing.places import EventContext, PairContext, PointContext

_Dump: TypeAlias = Callable[[Any], "str | bytes | Value"]
_Load: TypeAlias = Callable[["str | bytes"], Any]

_NOTHING: Final = Value(Encoding.JSON, b"null")
"""The value to seal for an event of a unary operator. It proves that a holder of the key recorded the event."""


class Codec:
    """Turns the values of one store into what is stored, and back.

    ``sealer`` is None for a store without a key. ``own_dump`` and ``own_load`` are those of a subclass of the store
    that has its own, and otherwise None. ``trusted`` takes every pickle, see :mod:`rstore.pickles`.
    """

    __slots__ = ("_own_dump", "_own_load", "_sealer", "_trusted")

    def __init__(self, sealer: Sealer | None, *, trusted: bool, own_dump: _Dump | None, own_load: _Load | None) -> None:
        self._sealer = sealer
        self._trusted = trusted
        self._own_dump = own_dump
        self._own_load = own_load

    @property
    def sealer(self) -> Sealer | None:
        """The sealer. None without a key."""
        return self._sealer

    def dump(self, value: Any) -> Value:
        """Encode a value. Raises :class:`StoreEncodingError` for one that cannot be stored."""
        if self._own_dump is None:
            return dump(value, trusted=self._trusted)
        dumped = self._own_dump(value)
        if isinstance(dumped, str):
            try:
                data = dumped.encode()
                parse_json(data)
            except InvalidJSON:
                return Value(Encoding.BYTES, data)
            except UnicodeEncodeError:
                raise StoreEncodingError("_dump returned a str with a lone surrogate") from None
            return Value(Encoding.JSON, data)
        if isinstance(dumped, bytes):
            return Value(Encoding.BYTES, dumped)
        if isinstance(dumped, Value):
            return dumped
        raise StoreEncodingError(f"_dump returns str or bytes, not {type(dumped).__name__}")

    def load(self, value: Value, spend: Spend) -> Any:
        """Decode a value that is not sealed."""
        encoding, data = value
        if self._own_load is None or encoding not in (Encoding.JSON, Encoding.BYTES):
            return load(value, trusted=self._trusted, spend=spend)
        if encoding is Encoding.BYTES:
            return self._own_load(data)
        spend(json_memory(data))
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise StoreEncodingError("the stored JSON is not UTF-8") from None
        return self._own_load(text)

    def store(self, value: Any, place: PairContext) -> Value:
        """The value to store for ``value``: dumped, and sealed if there is a key."""
        dumped = self.dump(value)
        return dumped if self._sealer is None else self._sealer.seal(dumped, place)

    def restore(self, value: Value, place: PairContext | PointContext, spend: Spend) -> Any:
        """The Python object in a stored value: opened if there is a key, and loaded."""
        if self._sealer is None:
            return self.load(value, spend)
        # The opened bytes exist twice for a moment: with the byte of their encoding, and without it.
        spend(2 * len(value.data))
        return self.load(self._sealer.open(value, place), spend)

    def seal_event(self, value: Value | None, place: EventContext, apply_id: bytes) -> Value:
        """The sealed value to store for an event's dumped value (None for a unary operator). There must be a key."""
        assert self._sealer is not None
        return self._sealer.seal_event(value or _NOTHING, place, apply_id)

    def restore_event(self, value: Value | None, place: EventContext, spend: Spend) -> tuple[Any, bytes | None]:
        """An event's value as Python has it (None for a unary operator), and its apply id (None if it has none)."""
        if self._sealer is None:
            return None if value is None else self.load(value, spend), None
        if value is None:
            raise StoreDecryptionError(
                f"the event of {place.op} is not sealed, and a store with a key takes no event on trust"
            )
        spend(2 * len(value.data))
        opened, apply_id = self._sealer.open_event(value, place)
        if place.op not in UNARY:
            return self.load(opened, spend), apply_id
        if opened != _NOTHING:
            raise StoreDecryptionError(f"what is sealed for an event of {place.op} is not null")
        return None, apply_id

    def store_points(self, namespace: str, key: str, points: Points) -> Points:
        """The points to store for dumped points: sealed if there is a key."""
        if self._sealer is None:
            return points
        column = points.values
        plaintexts = list(map(pack, column)) if isinstance(column, Cells) else dump_numbers(column)
        envelopes = self._sealer.seal_points(namespace, key, points.timestamps, plaintexts)
        sealed = bytes((Encoding.SEALED,)) * len(envelopes)
        return Points(points.timestamps, Cells(sealed, array("I", map(len, envelopes)), b"".join(envelopes)))

    def dump_points(self, timestamps: list[Any], values: list[Any] | Cells, what: str = "points") -> Points:
        """Points of Python objects, not sealed yet: numbers as columns, anything else as encoded cells.

        ``what`` is the name of the argument with the timestamps, for messages.
        """
        try:
            if self._own_dump is None or isinstance(values, Cells):
                return Points.from_columns(timestamps, values, self.dump)
            points = Points.from_columns(timestamps, Cells.from_values(map(self.dump, values)))
            if self._sealer is None:
                _check_digits(points)
            return points
        except InvalidPoints as error:
            place = what if error.pointer is None else f"{what}[{error.pointer.rpartition('/')[2]}]"
            problem = {} if error.pointer is None else {"pointer": error.pointer}
            raise StoreRequestError(f"{place}: {error}", code=error.code, problem=problem) from None

    def restore_points(self, namespace: str, key: str, points: Points, spend: Spend) -> list[Any]:
        """The values of stored points, in their order."""
        column, trusted = points.values, self._trusted
        if self._sealer is None and self._own_load is None:
            if not isinstance(column, Cells):
                return column.tolist()
            if Encoding.PICKLE in column.encodings:
                return [load(value, trusted=trusted, spend=spend) for value in column]
            spend(texts_memory(column.data, len(column)))
            return [load(value, trusted=trusted) for value in column]
        if self._sealer is not None and points.encodings == {Encoding.SEALED} and isinstance(column, Cells):
            spend(len(column.data))
            plaintexts = self._sealer.open_points(namespace, key, points.timestamps, column.parts())
            if self._own_load is None:
                return load_plaintexts(plaintexts, trusted=trusted, spend=spend)
            return [self.load(unpack(plaintext), spend) for plaintext in plaintexts]
        cells = column if isinstance(column, Cells) else map(dump, column)
        places = map(functools.partial(PointContext, namespace, key), points.timestamps)
        return [self.restore(cell, place, spend) for cell, place in zip(cells, places, strict=True)]


def _check_digits(points: Points) -> None:
    """Raise for a number that a `_dump` wrote as JSON, if the service would keep fewer digits of it."""
    for t, (encoding, data) in points:
        try:
            exact = encoding is not Encoding.JSON or (stored := stored_text(data)) == data or _equal(stored, data)
        except InvalidJSON:
            exact = False
        if not exact:
            raise StoreEncodingError(
                f"_dump returned a number at timestamp {t} that neither an int nor a float holds; "
                "let it return a JSON string or list with the digits in it"
            )


def _equal(one: bytes, other: bytes) -> bool:
    """Whether two JSON numbers are equal, digit for digit."""
    return Decimal(one.decode()) == Decimal(other.decode())
