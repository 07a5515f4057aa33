"""The resident memory of a server's process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.servers import Server


def memory_mb(server: Server, field: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float:
    """What it has now (``VmRSS``), or has had at most since :func:`forget_peak` (``VmHWM``)."""
    lines = (_process(server) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def forget_peak(server: Server) -> None:
    (_process(server) / "clear_refs").write_text("5")


def _process(server: Server) -> Path:
    assert server.process is not None
    return Path(f"/proc/{server.process.pid}")
