"""An event sequence with a long history beside one with the same state and a short one."""

from __future__ import annotations

from benchmarks.figures import Figure, Row, Size, each
from benchmarks.peers.rstored import Rstored

ITEMS = 100  # in the state of both
CALLS = 300
NEAR = 1 / 1.2  # at most 1.2 times the time


def measure(size: Size) -> list[Row]:
    events, calls = size.of(100_000, least=1_000), size.of(CALLS, least=20)
    taken: dict[tuple[str, str], list[float]] = {}
    with Rstored() as service, service.store() as store:
        for turn in range(events // ITEMS):
            store.apply("long", {f"item-{item}": turn for item in range(ITEMS)})
        store.apply("short", {f"item-{item}": turn for item in range(ITEMS)})
        if store.current("long") != store.current("short"):
            raise RuntimeError("the two sequences differ")
        for number in range(size.rounds):
            for what, work in (("apply", store.apply), ("current", store.current)):
                for key in ("long", "short"):
                    arguments = ({"item-1": number},) if what == "apply" else ()
                    seconds = each(calls, work, key, *arguments)
                    taken.setdefault((what, key), []).append(seconds * 1e3)
    return [
        Figure(
            f"{what} after {events:,} events",
            f"after {ITEMS} events",
            "ms",
            taken[what, "long"],
            taken[what, "short"],
            NEAR,
        )
        for what in ("apply", "current")
    ]
