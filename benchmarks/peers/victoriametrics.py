"""VictoriaMetrics, a time series database, over its JSON line import and export.

It has no log and acknowledges points that are in memory only; nothing it offers makes that durable at once, so it is
measured as it is, in its favour. Its values are doubles.
"""

from __future__ import annotations

import http.client

import msgspec
from tests.servers import HOST, Server, binary

Points = list[tuple[int, float]]


class _Line(msgspec.Struct):
    values: list[float]
    timestamps: list[int]


class VictoriaMetrics(Server):
    """One series a line, its values and its timestamps in a column each: the quickest form it has from Python."""

    @staticmethod
    def missing() -> str | None:
        program = "victoria-metrics"
        return None if binary(program) else f"VictoriaMetrics is not installed: apt-get install {program}"

    def command(self) -> list[str]:
        program = binary("victoria-metrics")
        assert program is not None
        command = [program, f"-storageDataPath={self.folder}/data", f"-httpListenAddr={HOST}:{self.port}"]
        return [*command, "-retentionPeriod=100y", "-loggerLevel=ERROR"]

    def answers(self) -> bool:
        return self.says_yes("/health")

    def write(self, series: str, points: Points) -> None:
        """Send the points."""
        timestamps, values = zip(*points, strict=True)
        line = {"metric": {"__name__": series}, "values": values, "timestamps": timestamps}
        self._ask("POST", "/api/v1/import", msgspec.json.encode(line))

    def flush(self) -> None:
        """Have what was written be found by reads."""
        self._ask("GET", "/internal/force_flush")

    def read(self, series: str) -> Points:
        """All points."""
        lines = self._ask("GET", f"/api/v1/export?match[]={series}").splitlines()
        points: Points = []
        for line in lines:
            columns = msgspec.json.decode(line, type=_Line)
            points += zip(columns.timestamps, columns.values, strict=True)
        return points

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"VictoriaMetrics answered with {answer.status}: {text[:200]!r}")
        return text
