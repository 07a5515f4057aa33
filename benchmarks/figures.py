"""What a part measures: figures of rstore and of a peer, taken in turn, and the ratio between them.

A ratio says how many times better rstore is: its rate over the peer's, or the peer's cost over its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Size(NamedTuple):
    """How much a run does. Rounds are odd, so that a median is a measured figure."""

    rounds: int
    seconds: float
    scale: float

    def of(self, full: int, least: int = 100) -> int:
        """How many there are of what a full run has ``full`` of."""
        return max(round(full * self.scale), min(full, least))


FULL = Size(rounds=3, seconds=2, scale=1)
QUICK = Size(rounds=1, seconds=1, scale=0.001)


class Figure(NamedTuple):
    """Ours against the peer's, a figure a round in ``unit``; ``reach`` is the ratio that the project wants, or None."""

    what: str
    peer: str
    unit: str
    ours: list[float]
    theirs: list[float]
    reach: float | None = None

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        # A rate is the better the higher it is, a cost the lower.
        return [ours / theirs if self.unit.endswith("/s") else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches what it should, unrounded."""
        return None if self.reach is None else self.ratio >= self.reach


class Note(NamedTuple):
    """A row without a ratio: a figure of ours alone, or a peer that was not measured, and why."""

    what: str
    text: str


Row: TypeAlias = Figure | Note
Part: TypeAlias = Callable[[Size], list[Row]]


def timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """How many seconds a call took, and what it returned."""
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def each(count: int, work: Callable[..., object], *arguments: Any) -> float:
    """How many seconds each of ``count`` calls took, one after the other."""
    started = time.perf_counter()
    for _ in range(count):
        work(*arguments)
    return (time.perf_counter() - started) / count
