"""Pickles of harmless types: made so that they can be read, and read without trusting whoever made them.

Unpickling is code execution, and neither the service nor everybody who may write to a store should run code in
everybody who reads it. So no pickle reaches Python's unpickler, whether it was sealed or not. :func:`loads` runs it on
a small machine of its own, whose whole instruction set is what protocol 5 makes of harmless types, and in which a name
means a row of the table below or nothing:

* Nothing is imported, looked up by attribute, given state (``BUILD``) or made without its constructor
  (``NEWOBJ``). ``REDUCE`` calls no class: it calls the row's function here, which takes only arguments of the shape
  that the type's own ``__reduce__`` produces.
* Memory stays in proportion to the pickle: every instruction makes one object of the size of its operands, what
  constructors copy out of shared operands is added up and bounded, and so is the number of objects.
* Time does too. Only hashing and constructing can cost more than the bytes that ask for it (nested tuples that share
  their parts, keys chosen to collide), so a composite key is measured before it is hashed, and both are held to an
  allowance of CPU time that grows with the size of the pickle.

:func:`dumps` makes nothing that :func:`loads` would refuse: the pickler takes the types of the table and no others, and
the machine reads each pickle once before anybody stores it. With ``trusted=True`` both also take what Python's own
pickler and unpickler take.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import functools
import io
import ipaddress
import pathlib
import pickle
import re
import struct
import sys
import time
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from rstore.core.errors import StoreEncodingError, StoreError
from rstore.core.memory import Spend, free
from rstore.core.numeric import plain_number

__all__ = ["dumps", "loads"]


def dumps(value: object, *, trusted: bool = False) -> bytes:
    """The pickle of ``value``, which :func:`loads` with the same ``trusted`` reads.

    Raises :class:`StoreEncodingError` that names the type which cannot be stored, and the remedy. With ``trusted`` that
    is a type which Python itself cannot pickle, or cannot load again, which is tried.

    >>> loads(dumps({1: {"a", "b"}}), trusted=False) == {1: {"a", "b"}}
    True
    >>> import enum
    >>> dumps(enum.Enum("Size", "SMALL").SMALL)  # doctest: +ELLIPSIS
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
        raise StoreEncodingError(f"a value of type {_name(kind)} would come back as one of type {_name(found)}")
    return data


def loads(data: bytes, *, trusted: bool, spend: Spend = free) -> object:
    """The value of a pickle. ``spend`` is told how much memory it takes, before it takes it.

    ``trusted`` runs Python's own unpickler, and so whatever code the pickle names. Otherwise only the types of the
    table in this module are made. Every failure is a :class:`StoreEncodingError`; for a type that is not in the table
    it names the type and the remedy.

    >>> import enum, pickle
    >>> loads(pickle.dumps(enum.Enum), trusted=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    rstore.StoreEncodingError: the pickle holds 'enum.Enum', which is not among the harmless types; ...
    """
    if trusted:
        spend(_MEMORY_PER_BYTE * len(data))
        try:
            return pickle.loads(data)  # noqa: S301 - the caller vouches for the pickle
        except Exception as error:
            raise StoreEncodingError(f"the pickle cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        return _Machine(data, spend=spend).run()
    except StoreError:
        raise
    except _Refusal as refusal:
        reason = str(refusal)
    except Exception as error:
        reason = f"the pickle is malformed ({type(error).__name__})"
    raise StoreEncodingError(
        f"{reason}; open the store with trust_pickle=True to load any pickle, "
        "if you trust everyone who can write to it not to run code here"
    )


class _Refusal(Exception):
    """What the machine does not do; the message says why."""


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# --- making ------------------------------------------------------------------------------------------------


def _pickled(pickler: type[pickle.Pickler], value: object) -> bytes:
    buffer = io.BytesIO()
    try:
        pickler(buffer, protocol=5).dump(value)
    except StoreEncodingError:
        raise
    except Exception as error:
        # Pickling runs methods of the value's classes, so it can fail with anything.
        raise StoreEncodingError(f"a value of type {_name(type(value))} cannot be pickled: {error}") from error
    return buffer.getvalue()


def _harmless_pickle(value: object) -> bytes:
    data = _pickled(_HarmlessPickler, value)
    try:
        _Machine(data, share=_WRITING_SHARE).run()
    except Exception as error:
        reason = str(error) if isinstance(error, _Refusal) else f"the reader stops at it ({type(error).__name__})"
        raise _beyond(f"a value of type {_name(type(value))}", reason) from None
    return data


def _beyond(what: str, reason: str) -> StoreEncodingError:
    return StoreEncodingError(
        f"{what} is not stored: {reason}; convert it, or open the store with trust_pickle=True, here and to read it"
    )


class _HarmlessPickler(pickle.Pickler):
    """Python's pickler for the types of the table alone, and with calls of constructors for each of them.

    Subclasses are refused, because they would come back as something else. Numbers of other types are the numbers that
    they are equal to.
    """

    def reducer_override(self, value: Any) -> Any:
        # Python's pickler asks for everything but plain data.
        kind = type(value)
        if isinstance(value, type):
            if any(value is named for named in _GLOBALS.values()):
                return NotImplemented
            raise _beyond(f"the class {_name(value)}", _NOT_HARMLESS)
        if kind in _REDUCERS:
            return _REDUCERS[kind](value)
        if kind in _CONSTRUCTORS or value is ... or value is NotImplemented:
            return NotImplemented
        number = plain_number(value)
        if number is not None:
            return type(number), (number,)
        raise _beyond(f"a value of type {_name(kind)}", _NOT_HARMLESS)


_NOT_HARMLESS: Final = "only harmless types are, because loading any other can run code"


def _reduce_uuid(value: uuid.UUID) -> tuple[type, tuple[str]]:
    # Its own reduction sets state on a bare object. The safety hint of uuid1, which equality ignores, is dropped.
    return uuid.UUID, (value.hex,)


def _reduce_zone(value: zoneinfo.ZoneInfo) -> Any:
    # Its own reduction calls a private method through getattr. Without a key it has to fail as it does.
    return (zoneinfo.ZoneInfo, (value.key,)) if value.key else value.__reduce__()


def _reduce_counter(value: collections.Counter[Any]) -> tuple[Any, ...]:
    # Its own reduction copies a dict when it is loaded; sharing that dict would multiply memory.
    return collections.Counter, (), None, None, iter(value.items())


def _reduce_path(value: pathlib.PurePath) -> tuple[type, tuple[str]]:
    # Its own reduction shares the parts of paths in one folder, so that few bytes would make many long paths.
    return type(value), (str(value),)


_PATHS: Final = (pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path()))

_REDUCERS: Final[dict[type, Callable[[Any], Any]]] = {
    uuid.UUID: _reduce_uuid,
    zoneinfo.ZoneInfo: _reduce_zone,
    collections.Counter: _reduce_counter,
    **dict.fromkeys(_PATHS, _reduce_path),
}
"""Types whose own reduction needs more than the call of a constructor, or is too short for the reader's bounds."""


# --- the table: which types a pickle may make, and from which arguments --------------------------

_INT_BITS_MAX: Final = 32_768
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}\Z")


def _exact(value: object, *kinds: type) -> Any:
    """``value`` if its type is one of ``kinds``, and no subclass of it; else ``TypeError``."""
    if type(value) not in kinds:
        raise TypeError
    return value


def _integer(value: object) -> int:
    """An int of a size that arithmetic takes no time for."""
    number: int = _exact(value, int)
    if number.bit_length() > _INT_BITS_MAX:
        raise ValueError
    return number


def _same(kind: type, value: object) -> object:
    return _exact(value, kind)


def _complex(real: object, imag: object) -> complex:
    return complex(_exact(real, float), _exact(imag, float))


def _range(start: object, stop: object, step: object) -> range:
    return range(_integer(start), _integer(stop), _integer(step))


_BOUNDS: Final = (type(None), int, float, str, datetime.datetime, datetime.date, datetime.timedelta)


def _slice(*bounds: object) -> slice:
    start, stop, step = (_exact(bound, *_BOUNDS) for bound in bounds)
    return slice(start, stop, step)


def _zone(value: object) -> Any:
    return _exact(value, type(None), datetime.timezone, zoneinfo.ZoneInfo)


def _datetime(state: object, tzinfo: object = None) -> datetime.datetime:
    # The C constructor would take these bytes as they are; naming the parts has their ranges checked.
    year, month, day, hour, minute, second, high, low = struct.unpack(">HBBBBBBH", _exact(state, bytes))
    return datetime.datetime(
        year, month & 0x7F, day, hour, minute, second, high << 16 | low, tzinfo=_zone(tzinfo), fold=month >> 7
    )


def _date(state: object) -> datetime.date:
    return datetime.date(*struct.unpack(">HBB", _exact(state, bytes)))


def _time(state: object, tzinfo: object = None) -> datetime.time:
    hour, minute, second, high, low = struct.unpack(">BBBBH", _exact(state, bytes))
    return datetime.time(hour & 0x7F, minute, second, high << 16 | low, tzinfo=_zone(tzinfo), fold=hour >> 7)


def _timedelta(days: object, seconds: object, microseconds: object) -> datetime.timedelta:
    return datetime.timedelta(_integer(days), _integer(seconds), _integer(microseconds))


def _timezone(offset: object, *name: object) -> datetime.timezone:
    return datetime.timezone(_exact(offset, datetime.timedelta), *(_exact(part, str) for part in name))


def _zone_info(key: object) -> zoneinfo.ZoneInfo:
    # The key becomes the name of a file of the time zone database, so nothing but a zone's name may be one.
    if _ZONE.match(_exact(key, str)) is None:
        raise ValueError
    return zoneinfo.ZoneInfo(_exact(key, str))


def _decimal(text: object) -> decimal.Decimal:
    return decimal.Decimal(_exact(text, str))


def _fraction(numerator: object, denominator: object) -> fractions.Fraction:
    return fractions.Fraction(_integer(numerator), _integer(denominator))


def _uuid(text: object) -> uuid.UUID:
    return uuid.UUID(_exact(text, str))


def _default_dict(factory: Any = None) -> collections.defaultdict[Any, Any]:
    # Identity, so that no argument's own idea of equality is asked.
    if factory is not None and not any(factory is allowed for allowed in _FACTORIES):
        raise TypeError
    return collections.defaultdict(factory)


def _deque(items: object = (), length_max: object = None) -> collections.deque[Any]:
    if items != ():
        raise TypeError
    return collections.deque(maxlen=None if length_max is None else _integer(length_max))


def _ip(kind: type) -> Callable[..., object]:
    return lambda address: kind(_exact(address, int, str))


def _path(kind: type) -> Callable[..., object]:
    return lambda *parts: kind(*(_exact(part, str) for part in parts))


_CONSTRUCTORS: Final[dict[Any, Callable[..., object]]] = {
    # So a number of another type is written: as the number that it is equal to.
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
    # Without type arguments, which would stay on the dict as an attribute and be pickled again.
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
    **{kind: _path(kind) for kind in _PATHS},
}

_FACTORIES: Final[Sequence[type]] = (
    *(int, float, complex, bool, str, bytes, bytearray, list, tuple, dict, set, frozenset),
    *(collections.OrderedDict, collections.Counter, collections.deque, decimal.Decimal, fractions.Fraction),
)
"""Types that a pickle may also name without making one, such as the factory of a defaultdict."""

_GLOBALS: Final[dict[tuple[str, str], object]] = {
    ("builtins", "Ellipsis"): ...,
    ("builtins", "NotImplemented"): NotImplemented,
    **{(kind.__module__, kind.__qualname__): kind for kind in (*_FACTORIES, *_CONSTRUCTORS)},
    # Since Python 3.13 the paths say that they live in a private module.
    **{(module, kind.__qualname__): kind for kind in _PATHS for module in ("pathlib", "pathlib._local")},
}

# --- the machine -------------------------------------------------------------------------------------------

_OBJECTS_MAX: Final = 2_000_000
# The most bytes of memory that are taken: by a byte of text, which one wide character makes wide; by a number and its
# places in stack, memo and dict; by a member's place in a set; by an empty container; by what a constructor makes.
_MEMORY_PER_BYTE: Final = 5
_MEMORY_PER_INSTRUCTION: Final = 104
_MEMORY_PER_MEMBER: Final = 160
_MEMORY_PER_CONTAINER: Final = 240
_MEMORY_PER_CALL: Final = 600
_MEMORY_PER_COPIED_BYTE: Final = 8
_INSTRUCTIONS_PER_COUNT: Final = 256
_COPIES_PER_BYTE_MAX: Final = 16
_KEY_BYTES_MAX: Final = 65_536
_FROZEN_NESTING_MAX: Final = 500
_CPU_SECONDS: Final = 2.0
_CPU_SECONDS_PER_BYTE: Final = 4e-6
_WRITING_SHARE: Final = 0.5
"""The share of this time that has to do for what is written, so that a slower reader can read it too."""
_STEPS_PER_CHECK: Final = 64
_KEY_BYTES_PER_STEP: Final = 64
_STEPS_PER_CALL: Final = 4
_CHEAP_KEY_TYPES: Final = frozenset({str, bytes, int, float, bool, type(None)})
_COPIED: Final = frozenset({str, bytes, int})
_FROZEN: Final = frozenset({tuple, frozenset})
_DICTS: Final = frozenset({dict, collections.OrderedDict, collections.defaultdict, collections.Counter})


class _Machine:
    """Runs one untrusted pickle. Raises anything on a malformed one; it is used once and thrown away."""

    def __init__(self, data: bytes, *, share: float = 1.0, spend: Spend = free) -> None:
        """``share`` of the time that such a pickle may take is what this one has; ``spend`` counts its memory."""
        self.spend_memory = spend
        self.members = 0
        self.calls = 0
        self.counted = 0
        self.data = data
        self.position = 0
        self.frame_end = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.objects = 0
        self.copies = 0
        self.copies_max = _COPIES_PER_BYTE_MAX * (len(data) + 4096)
        self.steps = 0
        self.key_sizes: dict[int, tuple[object, int]] = {}
        self.nestings: dict[int, tuple[object, int]] = {}
        self.seconds = share * (_CPU_SECONDS + _CPU_SECONDS_PER_BYTE * len(data))
        # From the first look at the clock on, which a small pickle does not live to see.
        self.deadline: float | None = None

    def run(self) -> object:
        data, instructions, stop = self.data, _INSTRUCTIONS, pickle.STOP[0]
        executed = 0
        self.spend_memory(_MEMORY_PER_BYTE * len(data))
        while (code := data[self.position]) != stop:
            self.position += 1
            instruction = instructions.get(code)
            if instruction is None:
                raise _Refusal(f"the pickle uses opcode 0x{code:02x}, which no harmless type needs")
            instruction(self)
            executed += 1
            if executed == _INSTRUCTIONS_PER_COUNT:
                self.count_memory(executed)
                executed = 0
        self.count_memory(executed)
        if self.position + 1 != len(data) or len(self.stack) != 1 or self.marks:
            raise ValueError
        return self.stack[0]

    # Bounds

    def count_memory(self, executed: int) -> None:
        """Count what so many instructions have made since this was called last."""
        made = (
            _MEMORY_PER_CONTAINER * self.objects
            + _MEMORY_PER_MEMBER * self.members
            + _MEMORY_PER_CALL * self.calls
            + _MEMORY_PER_COPIED_BYTE * self.copies
        )
        self.spend_memory(_MEMORY_PER_INSTRUCTION * executed + made - self.counted)
        self.counted = made

    def check_cpu(self) -> None:
        now = time.thread_time()
        if self.deadline is None:
            self.deadline = now + self.seconds
        elif now > self.deadline:
            raise _Refusal("the pickle takes far more time than its size explains")

    def count_object(self) -> None:
        self.objects += 1
        if self.objects > _OBJECTS_MAX:
            raise _Refusal(f"the pickle makes more than {_OBJECTS_MAX:,} containers")

    def spend(self, steps: int) -> None:
        """Count work, and look at the clock after every so many steps of it."""
        self.steps += steps
        if self.steps >= _STEPS_PER_CHECK:
            self.steps = 0
            self.check_cpu()

    def allow_hashing(self, key: object) -> None:
        """Called before ``key`` is hashed into a dict or set; raises if that could cost too much."""
        size = sys.getsizeof(key) if type(key) in _CHEAP_KEY_TYPES else self.measure_key(key)
        self.spend(1 + size // _KEY_BYTES_PER_STEP)

    def measure_key(self, key: object) -> int:
        """How many bytes hashing or comparing a key goes through; parts that it shares count each time."""
        if type(key) not in _FROZEN:
            return sys.getsizeof(key)
        if (known := self.key_sizes.get(id(key))) is not None:
            return known[1]
        size = sys.getsizeof(key)
        for part in key:  # type: ignore[attr-defined]
            size += self.measure_key(part)
            if size > _KEY_BYTES_MAX:
                raise _Refusal("the pickle has a dict key or set member that is too large to hash")
        # Keeping the key itself keeps its id from being taken over by another object.
        self.key_sizes[id(key)] = key, size
        return size

    # Operands

    def take(self, size: int) -> bytes:
        start = self.position
        self.position = end = start + size
        if end > len(self.data) or start < self.frame_end < end:
            # No operand goes beyond its frame (PEP 3154): Python reads such a one in two ways, from bytes and files.
            raise EOFError
        return self.data[start:end]

    def take_byte(self) -> int:
        byte = self.data[self.position]
        self.position += 1
        return byte

    def take_size(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def begin_protocol(self) -> None:
        if self.take_byte() > pickle.HIGHEST_PROTOCOL:
            raise ValueError

    def begin_frame(self) -> None:
        size = self.take_size(8)
        if size > len(self.data) - self.position or self.position <= self.frame_end:
            raise EOFError
        self.frame_end = self.position + size

    def pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Instructions

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> None:
        # A tuple that contains itself is made, dropped and taken from the memo instead.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def push_new(self, value: object) -> None:
        self.count_object()
        self.stack.append(value)

    def push_frozen(self, value: tuple[Any, ...] | frozenset[Any]) -> None:
        """Push a tuple or frozenset, unless it is nested so deep that hashing it would overflow the C stack."""
        below = [self.nestings.get(id(part), (part, 1))[1] for part in value if type(part) in _FROZEN]
        if below:
            if max(below) >= _FROZEN_NESTING_MAX:
                raise _Refusal(f"the pickle nests tuples or frozensets more than {_FROZEN_NESTING_MAX} deep")
            self.nestings[id(value)] = value, max(below) + 1
        self.push_new(value)

    def memoize(self) -> None:
        self.memo.append(self.stack[-1])

    def integer(self, size: int) -> None:
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, size: int) -> None:
        self.stack.append(str(self.take(size), "utf-8", "surrogatepass"))

    def float(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.push_frozen(items)

    def extend(self, items: Iterable[Any]) -> None:
        _exact(self.stack[-1], list, collections.deque).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in _DICTS:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.allow_hashing(key)
            target[key] = value

    def add_items(self, items: list[Any], target: set[Any]) -> set[Any]:
        self.members += len(items)
        for item in items:
            self.allow_hashing(item)
            target.add(item)
        return target

    def global_(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        found = _GLOBALS.get((_exact(module, str), _exact(name, str)), self)
        if found is self:
            raise _Refusal(f"the pickle holds {f'{module}.{name}'[:200]!a}, which is not among the harmless types")
        self.stack.append(found)

    def reduce(self) -> None:
        arguments = _exact(self.stack.pop(), tuple)
        kind = self.stack.pop()
        if not isinstance(kind, type):
            raise TypeError
        constructor = _CONSTRUCTORS[kind]
        self.copies += sum(sys.getsizeof(part) for part in arguments if type(part) in _COPIED)
        if self.copies > self.copies_max:
            raise _Refusal("the pickle takes far more memory than its size explains")
        self.calls += 1
        self.push_new(constructor(*arguments))
        self.spend(_STEPS_PER_CALL)


_INSTRUCTIONS: Final[dict[int, Callable[[_Machine], None]]] = {
    opcode[0]: instruction
    for opcode, instruction in {
        pickle.PROTO: _Machine.begin_protocol,
        pickle.FRAME: _Machine.begin_frame,
        pickle.MARK: _Machine.mark,
        pickle.POP: _Machine.pop,
        pickle.POP_MARK: _Machine.pop_to_mark,
        pickle.MEMOIZE: _Machine.memoize,
        pickle.BINGET: lambda m: m.stack.append(m.memo[m.take_byte()]),
        pickle.LONG_BINGET: lambda m: m.stack.append(m.memo[m.take_size(4)]),
        pickle.NONE: lambda m: m.stack.append(None),
        pickle.NEWTRUE: lambda m: m.stack.append(True),
        pickle.NEWFALSE: lambda m: m.stack.append(False),
        pickle.BININT: lambda m: m.integer(4),
        pickle.BININT1: lambda m: m.stack.append(m.take_byte()),
        pickle.BININT2: lambda m: m.stack.append(m.take_size(2)),
        pickle.LONG1: lambda m: m.integer(m.take_byte()),
        pickle.LONG4: lambda m: m.integer(m.take_size(4)),
        pickle.BINFLOAT: _Machine.float,
        pickle.SHORT_BINUNICODE: lambda m: m.text(m.take_byte()),
        pickle.BINUNICODE: lambda m: m.text(m.take_size(4)),
        pickle.BINUNICODE8: lambda m: m.text(m.take_size(8)),
        pickle.SHORT_BINBYTES: lambda m: m.stack.append(m.take(m.take_byte())),
        pickle.BINBYTES: lambda m: m.stack.append(m.take(m.take_size(4))),
        pickle.BINBYTES8: lambda m: m.stack.append(m.take(m.take_size(8))),
        pickle.BYTEARRAY8: lambda m: m.push_new(bytearray(m.take(m.take_size(8)))),
        pickle.EMPTY_TUPLE: lambda m: m.stack.append(()),
        pickle.TUPLE1: lambda m: m.tuple_of(1),
        pickle.TUPLE2: lambda m: m.tuple_of(2),
        pickle.TUPLE3: lambda m: m.tuple_of(3),
        pickle.TUPLE: lambda m: m.push_frozen(tuple(m.pop_to_mark())),
        pickle.EMPTY_LIST: lambda m: m.push_new([]),
        pickle.APPEND: lambda m: m.extend((m.stack.pop(),)),
        pickle.APPENDS: lambda m: m.extend(m.pop_to_mark()),
        pickle.EMPTY_DICT: lambda m: m.push_new({}),
        pickle.SETITEM: lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
        pickle.EMPTY_SET: lambda m: m.push_new(set()),
        pickle.ADDITEMS: lambda m: m.add_items(m.pop_to_mark(), _exact(m.stack[-1], set)),
        pickle.FROZENSET: lambda m: m.push_frozen(frozenset(m.add_items(m.pop_to_mark(), set()))),
        pickle.STACK_GLOBAL: _Machine.global_,
        pickle.REDUCE: _Machine.reduce,
    }.items()
}
