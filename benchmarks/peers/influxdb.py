"""InfluxDB 1.x, a time series database, over its line protocol and its msgpack answers.

It syncs its log before it acknowledges; that is its default.
"""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlencode

import msgspec
from tests.servers import HOST, Server, binary, free_port

Points = list[tuple[int, float]]

_LINES_PER_BATCH = 100_000  # quicker here than the 5,000 to 10,000 of its documentation

_CONFIGURATION = """\
reporting-disabled = true
bind-address = "{host}:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "{host}:{port}"
  log-enabled = false
[logging]
  level = "error"
"""


class InfluxDB(Server):
    """A server with one database."""

    @staticmethod
    def missing() -> str | None:
        return None if binary("influxd") else "InfluxDB is not installed: apt-get install influxdb"

    def command(self) -> list[str]:
        program = binary("influxd")
        assert program is not None
        path = self.folder / "influxdb.conf"
        path.write_text(_CONFIGURATION.format(host=HOST, port=self.port, rpc=free_port(), folder=self.folder))
        return [program, "-config", str(path)]

    def answers(self) -> bool:
        return self.says_yes("/ping")

    def create(self) -> None:
        """Make the database."""
        self._ask("POST", "/query", urlencode({"q": "CREATE DATABASE benchmark"}).encode())

    def write(self, series: str, points: Points) -> None:
        """Send the points, batch by batch."""
        for start in range(0, len(points), _LINES_PER_BATCH):
            lines = "\n".join([f"{series} v={value} {t}" for t, value in points[start : start + _LINES_PER_BATCH]])
            self._ask("POST", "/write?db=benchmark&precision=ms", lines.encode())

    def read(self, series: str) -> Points:
        """All points."""
        query = {"db": "benchmark", "q": f'SELECT v FROM "{series}"', "epoch": "ms"}
        answer = self._ask("GET", f"/query?{urlencode(query)}", Accept="application/x-msgpack")
        decoded: Any = msgspec.msgpack.decode(answer)
        return [(t, value) for t, value in decoded["results"][0]["series"][0]["values"]]

    def _ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        if method == "POST" and path == "/query":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"InfluxDB answered with {answer.status}: {text[:200]!r}")
        return text
