"""The machine that runs a pickle and does not trust it."""

from __future__ import annotations

import collections
import pickle
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from rstore.core.memory import Spend, free
from rstore.pickles.harmless import CONSTRUCTORS, GLOBALS, Refusal, exactly

# The most bytes of memory that a byte of text takes. One wide character makes the whole text wide.
MEMORY_PER_BYTE: Final = 5
# The most bytes of memory that each of these takes: the number that an instruction makes, with its places in stack,
# memo and dict; the place of a member in a set; an empty container; the result of a constructor; a byte that it copies.
_MEMORY_PER_INSTRUCTION: Final = 104
_MEMORY_PER_MEMBER: Final = 160
_MEMORY_PER_CONTAINER: Final = 240
_MEMORY_PER_CALL: Final = 600
_MEMORY_PER_COPIED_BYTE: Final = 8
OBJECTS_MAX: Final = 2_000_000
_INSTRUCTIONS_PER_COUNT: Final = 256
_COPIES_PER_BYTE_MAX: Final = 16
_KEY_BYTES_MAX: Final = 65_536
_FROZEN_NESTING_MAX: Final = 500
_CPU_SECONDS: Final = 2.0
_CPU_SECONDS_PER_BYTE: Final = 4e-6
_STEPS_PER_CHECK: Final = 64
_KEY_BYTES_PER_STEP: Final = 64
_STEPS_PER_CALL: Final = 4
_CHEAP_KEY_TYPES: Final = frozenset({str, bytes, int, float, bool, type(None)})
_COPIED: Final = frozenset({str, bytes, int})
_FROZEN: Final = frozenset({tuple, frozenset})
_DICTS: Final = frozenset({dict, collections.OrderedDict, collections.defaultdict, collections.Counter})


class Machine:
    """Runs one untrusted pickle, once. On a malformed pickle it may raise anything."""

    def __init__(self, data: bytes, *, share: float = 1.0, spend: Spend = free) -> None:
        """``share`` is the part of the usual time that the pickle may take. ``spend`` counts its memory."""
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
        # The time runs from the first look at the clock. A small pickle ends before that.
        self.deadline: float | None = None

    def run(self) -> object:
        data, instructions, stop = self.data, INSTRUCTIONS, pickle.STOP[0]
        executed = 0
        self.spend_memory(MEMORY_PER_BYTE * len(data))
        while (code := data[self.position]) != stop:
            self.position += 1
            instruction = instructions.get(code)
            if instruction is None:
                raise Refusal(f"the pickle uses opcode 0x{code:02x}, which no harmless type needs")
            instruction(self)
            executed += 1
            if executed == _INSTRUCTIONS_PER_COUNT:
                self.count_memory(executed)
                executed = 0
        self.count_memory(executed)
        if self.position + 1 != len(data) or len(self.stack) != 1 or self.marks:
            raise ValueError
        return self.stack[0]

    def count_memory(self, executed: int) -> None:
        """Count the memory of what these instructions have made since the last call."""
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
            raise Refusal("the pickle takes far more time than its size explains")

    def count_object(self) -> None:
        self.objects += 1
        if self.objects > OBJECTS_MAX:
            raise Refusal(f"the pickle makes more than {OBJECTS_MAX:,} containers")

    def spend(self, steps: int) -> None:
        """Count steps of work, and look at the clock from time to time."""
        self.steps += steps
        if self.steps >= _STEPS_PER_CHECK:
            self.steps = 0
            self.check_cpu()

    def allow_hashing(self, key: object) -> None:
        """Raise if it could take too long to hash ``key``, which is about to go into a dict or set."""
        size = sys.getsizeof(key) if type(key) in _CHEAP_KEY_TYPES else self.measure_key(key)
        self.spend(1 + size // _KEY_BYTES_PER_STEP)

    def measure_key(self, key: object) -> int:
        """How many bytes it takes to hash or compare a key. A part that stands in it twice counts twice."""
        if type(key) not in _FROZEN:
            return sys.getsizeof(key)
        if (known := self.key_sizes.get(id(key))) is not None:
            return known[1]
        size = sys.getsizeof(key)
        for part in key:  # type: ignore[attr-defined]
            size += self.measure_key(part)
            if size > _KEY_BYTES_MAX:
                raise Refusal("the pickle has a dict key or set member that is too large to hash")
        # The key is kept, so that no other object gets its id.
        self.key_sizes[id(key)] = key, size
        return size

    def take(self, size: int) -> bytes:
        start = self.position
        self.position = end = start + size
        if end > len(self.data) or start < self.frame_end < end:
            # No operand goes beyond its frame (PEP 3154). Python reads such a pickle from bytes and from files in two
            # different ways.
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

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> None:
        # To make a tuple that contains itself, a pickle makes the tuple, drops it, and takes it from the memo.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def push_new(self, value: object) -> None:
        self.count_object()
        self.stack.append(value)

    def push_frozen(self, value: tuple[Any, ...] | frozenset[Any]) -> None:
        """Push a tuple or frozenset. It must not be nested so deep that to hash it would overflow the C stack."""
        below = [self.nestings.get(id(part), (part, 1))[1] for part in value if type(part) in _FROZEN]
        if below:
            if max(below) >= _FROZEN_NESTING_MAX:
                raise Refusal(f"the pickle nests tuples or frozensets more than {_FROZEN_NESTING_MAX} deep")
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
        exactly(self.stack[-1], list, collections.deque).extend(items)

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
        found = GLOBALS.get((exactly(module, str), exactly(name, str)), self)
        if found is self:
            raise Refusal(f"the pickle holds {f'{module}.{name}'[:200]!a}, which is not among the harmless types")
        self.stack.append(found)

    def reduce(self) -> None:
        arguments = exactly(self.stack.pop(), tuple)
        kind = self.stack.pop()
        if not isinstance(kind, type):
            raise TypeError
        constructor = CONSTRUCTORS[kind]
        self.copies += sum(sys.getsizeof(part) for part in arguments if type(part) in _COPIED)
        if self.copies > self.copies_max:
            raise Refusal("the pickle takes far more memory than its size explains")
        self.calls += 1
        self.push_new(constructor(*arguments))
        self.spend(_STEPS_PER_CALL)


INSTRUCTIONS: Final[dict[int, Callable[[Machine], None]]] = {
    opcode[0]: instruction
    for opcode, instruction in {
        pickle.PROTO: Machine.begin_protocol,
        pickle.FRAME: Machine.begin_frame,
        pickle.MARK: Machine.mark,
        pickle.POP: Machine.pop,
        pickle.POP_MARK: Machine.pop_to_mark,
        pickle.MEMOIZE: Machine.memoize,
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
        pickle.BINFLOAT: Machine.float,
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
        pickle.ADDITEMS: lambda m: m.add_items(m.pop_to_mark(), exactly(m.stack[-1], set)),
        pickle.FROZENSET: lambda m: m.push_frozen(frozenset(m.add_items(m.pop_to_mark(), set()))),
        pickle.STACK_GLOBAL: Machine.global_,
        pickle.REDUCE: Machine.reduce,
    }.items()
}
