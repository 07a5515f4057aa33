"""What one service process costs before it does anything."""

from __future__ import annotations

import time

from benchmarks.figures import Figure, Row, Size
from benchmarks.peers.asgi import BareApp
from benchmarks.peers.memory import memory_mb
from benchmarks.peers.rstored import Rstored


def measure(size: Size) -> list[Row]:
    starts: tuple[list[float], list[float]] = [], []
    memory: tuple[list[float], list[float]] = [], []
    for _ in range(size.rounds):
        for start, resident, kind in zip(starts, memory, (Rstored, BareApp), strict=True):
            server = kind()
            began = time.perf_counter()
            with server:
                start.append(time.perf_counter() - began)
                resident.append(memory_mb(server))
    return [
        Figure("start until it answers, SQLite", "bare ASGI app", "s", *starts),
        Figure("resident memory, idle", "bare ASGI app", "MB", *memory),
    ]
