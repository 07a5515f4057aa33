"""Small ASGI apps under the server and settings that rstored has: the limit, and what one would write first."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.servers import HOST, Server

from benchmarks.load import KEYS, Request, Target

ROOT = Path(__file__).parents[2]


class _App(Server):
    app: str
    lifespan = "on"

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "uvicorn", self.app, "--app-dir", str(ROOT), "--host", HOST]
        command += ["--port", str(self.port), "--lifespan", self.lifespan, "--no-access-log", "--log-level", "warning"]
        return [*command, "--loop", "uvloop", "--http", "httptools"]

    def answers(self) -> bool:
        return self.listens()

    def target(self) -> Target:
        return Target(
            self.port,
            gets=[Request("GET", f"/kv/{key}") for key in KEYS],
            puts=[Request("PUT", f"/kv/{key}", '"{value}"', 98) for key in KEYS],
            headers={"Content-Type": "application/json"},
        )


class BareApp(_App):
    """Answers a constant and stores nothing."""

    app = "benchmarks.peers.bare_app:app"
    lifespan = "off"


class SingleApp(_App):
    """One statement, or command, for each request, over ``connections`` to the server of ``dsn``."""

    app = "benchmarks.peers.single_app:app"

    def __init__(self, dsn: str, connections: int) -> None:
        super().__init__()
        self.environment = {"PEER_DSN": dsn, "PEER_CONNECTIONS": str(connections)}
