"""webdis, HTTP in front of a Redis that appends each write to its log and syncs it before it acknowledges."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from tests.servers import HOST, Server, binary

from benchmarks.load import KEYS, Request, Target


class Webdis(Server):
    """Debian's settings: two threads, each with its own connections to Redis."""

    def __init__(self, redis: str) -> None:
        super().__init__()
        self.redis = urlsplit(redis)

    @staticmethod
    def missing() -> str | None:
        return None if binary("webdis") else "webdis is not installed: apt-get install webdis"

    def command(self) -> list[str]:
        program = binary("webdis")
        assert program is not None
        settings = {
            "redis_host": self.redis.hostname,
            "redis_port": self.redis.port,
            "redis_auth": None,
            "http_host": HOST,
            "http_port": self.port,
            "threads": 2,
            "pool_size": 20,
            "daemonize": False,
            "database": 0,
            "verbosity": 1,
            "logfile": str(self.folder / "webdis.log"),
        }
        (self.folder / "webdis.json").write_text(json.dumps(settings))
        return [program, str(self.folder / "webdis.json")]

    def answers(self) -> bool:
        return self.says_yes("/PING")

    def target(self) -> Target:
        return Target(
            self.port,
            gets=[Request("GET", f"/GET/webdis:{key}.txt") for key in KEYS],
            puts=[Request("PUT", f"/SET/webdis:{key}", "{value}", 100) for key in KEYS],
            headers={},
        )
