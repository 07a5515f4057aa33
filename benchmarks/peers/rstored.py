"""rstore's own service, one process on a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import HOST, Server

from benchmarks.load import KEYS, Request, Target
from rstore import Store

_PROGRAM = str(Path(sys.executable).with_name("rstored"))


class Rstored(Server):
    """The service as it starts by default: SQLite in its folder unless another ``dsn`` is given.

    Who asks has to bring a token; one that may write is made before it starts.
    """

    def __init__(self, dsn: str | None = None, workers: int = 1) -> None:
        super().__init__()
        self.workers = workers
        self.backend = dsn or f"sqlite:///{self.folder}/rstore.db"
        command = [_PROGRAM, "token", "create", "--namespace", "*", "--access", "write", "--dsn", self.backend]
        self.token = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    @property
    def dsn(self) -> str:
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        options = ["--host", HOST, "--port", str(self.port), "--dsn", self.backend, "--workers", str(self.workers)]
        return [_PROGRAM, "serve", *options]

    def answers(self) -> bool:
        return self.listens()

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def store(self, **options: Any) -> Store:
        """A store that may write; open it with ``with``."""
        return Store(self.dsn, frozen=False, token=self.token, timeout=120, **options)

    def target(self, characters: int = 98) -> Target:
        """Pairs of ``characters`` and two quotes."""
        return Target(
            self.port,
            gets=[Request("GET", f"/kv/{key}") for key in KEYS],
            puts=[Request("PUT", f"/kv/{key}", '"{value}"', characters) for key in KEYS],
            headers={"Content-Type": "application/json", **self.headers()},
        )
