"""``has``, ``len`` and one page of ``keys`` in a namespace of 1,000,000 pairs beside one of 1,000."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from benchmarks.figures import Figure, Row, Size, each
from benchmarks.peers.rstored import Rstored
from rstore import Store

PAIRS_PER_CALL = 10_000
FEW = 1_000
CALLS = 200
NEAR = 1 / 1.5  # at most 1.5 times the time


def measure(size: Size) -> list[Row]:
    counts = {"few": FEW, "many": size.of(1_000_000, least=5_000)}
    calls = size.of(CALLS, least=20)
    taken: dict[tuple[str, str], list[float]] = {}
    with Rstored() as service, service.store(namespace="few") as few, service.store(namespace="many") as many:
        client = httpx2.Client(base_url=service.dsn, headers=service.headers())
        stores = {"few": few, "many": many}
        for name, store in stores.items():
            _fill(store, counts[name])
        works: dict[str, Callable[[str], object]] = {
            "has": lambda name: stores[name].has(f"key-{FEW // 2:07}"),
            "len": lambda name: len(stores[name]),
            "one page of keys": lambda name: client.get(f"/ns/{name}/kv?limit={FEW}").raise_for_status(),
        }
        for _ in range(size.rounds):
            for what, work in works.items():
                for name in stores:
                    seconds = each(calls, work, name)
                    taken.setdefault((what, name), []).append(seconds * 1e3)
        client.close()
        if len(many) != counts["many"]:
            raise RuntimeError("pairs are missing")
    return [
        Figure(f"{what} at {counts['many']:,} keys", f"at {FEW:,}", "ms", taken[what, "many"], taken[what, "few"], NEAR)
        for what in works
    ]


def _fill(store: Store, count: int) -> None:
    for start in range(0, count, PAIRS_PER_CALL):
        store.set_many({f"key-{number:07}": number for number in range(start, min(start + PAIRS_PER_CALL, count))})
