"""One series of 10,000,000 points: what it costs beside a short one, and what memory it takes to stream it."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from benchmarks.figures import Figure, Row, Size, each
from benchmarks.peers.memory import forget_peak, memory_mb
from benchmarks.peers.rstored import Rstored
from rstore import Store

POINTS_PER_CALL = (100_000, 1_000_000)  # half of them by so many in a request, half by so many
SHORT = 1_000
CALLS = 200
MEMORY_MB_MAX = 150.0
NEAR = 1 / 1.5  # at most 1.5 times the time of the short one

POINTS_FORM = "application/vnd.rstore.points"


def measure(size: Size) -> list[Row]:
    count, calls = size.of(10_000_000, least=5_000), size.of(CALLS, least=20)
    with Rstored() as service, service.store() as store:
        idle = memory_mb(service)
        peaks: dict[str, float] = {}
        half = count // 2
        for first, per_call in zip((0, half), POINTS_PER_CALL, strict=True):
            forget_peak(service)
            for start in range(first, first + half, per_call):
                _extend(store, "long", start, min(start + per_call, first + half))
            peaks[f"{half:,} points stream in by {per_call:,}"] = memory_mb(service, "VmHWM")
        _extend(store, "short", 0, SHORT)
        rows = _beside_a_short_one(store, size, count, calls)
        # What it still has from writing is no part of reading.
        service.stop()
        service.start()
        _stream_out(service, count)
        peaks[f"{count:,} points stream out"] = memory_mb(service, "VmHWM")
    against = f"the limit; idle it had {idle:.0f} MB"
    rows += [
        Figure(f"memory while {what}", against, "MB", [peak], [MEMORY_MB_MAX], 1.0) for what, peak in peaks.items()
    ]
    return rows


def _extend(store: Store, key: str, start: int, end: int) -> None:
    store.extend(key, *[(t, t / 8) for t in range(start, end)])


def _beside_a_short_one(store: Store, size: Size, count: int, calls: int) -> list[Row]:
    lengths = {"long": count, "short": SHORT}
    appended = dict(lengths)

    def append(key: str) -> None:
        store.extend(key, (appended[key], 0.5))
        appended[key] += 1

    def middle(key: str) -> None:
        # 1,000 points, of which the short one has no more; in the middle of the long one.
        start = lengths[key] // 2 - SHORT // 2
        if len(store.range(key, start, end=start + SHORT - 1)) != SHORT:
            raise RuntimeError("points are missing")

    works: dict[str, Callable[[str], object]] = {
        "append one point to": append,
        "first of": store.first,
        "last of": store.last,
        "1,000 points out of": middle,
    }
    rows: list[Row] = []
    for what, work in works.items():
        taken: dict[str, list[float]] = {key: [] for key in lengths}
        for _ in range(size.rounds):
            for key in lengths:
                taken[key].append(each(calls, work, key) * 1e3)
        peer = f"a series of {SHORT:,}"
        rows.append(Figure(f"{what} {count:,} points", peer, "ms", taken["long"], taken["short"], NEAR))
    return rows


def _stream_out(service: Rstored, count: int) -> None:
    """Read all in one answer, and keep none of it."""
    url = f"{service.dsn}/ts/long/range"
    with httpx2.stream("GET", url, headers={"Accept": POINTS_FORM, **service.headers()}, timeout=120) as answer:
        answer.raise_for_status()
        read = sum(len(part) for part in answer.iter_raw())
    if read < count:
        raise RuntimeError("the answer is too short")
