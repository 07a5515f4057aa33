"""Types that tests pickle.

Pickle finds a class by the name of its module, and pytest may import a test module under two names: then what comes
back is of another class. This module has one name.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from typing import Any


class Colour(enum.Enum):
    RED = "red"
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flags(enum.Flag):
    A = 1
    B = 2


class Name(str):
    __slots__ = ()


class Row(tuple[Any, ...]):
    __slots__ = ()


class Stack(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class Celsius(float):
    """A number of a type of its own, which is stored as the float that it is."""

    __slots__ = ()


class Ticks(int):
    """A number of a type of its own, which is stored as the int that it is."""


class Index:
    """Stands for an integer, and is not an int."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True)
class Position:
    x: Any
    y: Any = None


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024 (the untyped form pickles by another path)


class Unloadable(Exception):
    """Can be pickled, and not be loaded again: the usual mistake of exceptions."""

    def __init__(self, left: Any, right: Any) -> None:
        super().__init__(f"{left} {right}")


class Chameleon:
    """Comes back as something else."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ((1, 2),)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def function() -> None:
    """Pickles by its name."""
