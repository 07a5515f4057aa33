"""The metrics of ``/metrics``. Each app has a registry of its own, so two apps in a process do not mix."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from rstored.backends.clock import Clock

METRICS_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class _Series:
    """One series of a histogram: how many observations fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class _Histogram(Collector):
    """A histogram for the thread of the event loop only. It needs no locks, which are slow."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._about = (name, documentation)
        self._labels = labels
        self._bounds = bounds
        self.series: dict[tuple[str, ...], _Series] = {}

    def labelled(self, *values: str) -> _Series:
        """The series with these label values."""
        return self.series.setdefault(values, _Series(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        names = [*map(str, self._bounds), "+Inf"]
        for values, series in sorted(self.series.items()):
            buckets = list(zip(names, accumulate(series.counts), strict=True))
            family.add_metric(values, buckets, series.sum)
        yield family


class _Labelled(Collector):
    """The metrics of a registry, with more labels."""

    def __init__(self, registry: CollectorRegistry, **labels: str) -> None:
        self._registry = registry
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample._replace(labels={**sample.labels, **self._labels}) for sample in family.samples]
            yield family


class Metrics(Collector):
    """The histograms of the service. The count of each is the number of requests, batches or backend calls.

    With ``worker``, every series has that label, because each scrape reaches one of several processes. This machine's
    clock is compared with ``clock``.
    """

    def __init__(self, worker: int | None = None) -> None:
        self._worker = worker
        self._requests = _Histogram(
            "rstored_request_seconds",
            "Time from the request's head to the end of the answer",
            ("route", "method", "status"),
            _SECONDS,
        )
        self._batches = _Histogram(
            "rstored_batch_size", "Requests that went to the backend together", ("operation",), _SIZES
        )
        self._backend = _Histogram(
            "rstored_backend_seconds", "Time of one call to the backend", ("operation",), _SECONDS
        )
        self.connections = 0
        self.requests_in_flight = 0
        self.clock = Clock()
        self._closed: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        for collector in (self._requests, self._batches, self._backend, self):
            self._registry.register(collector)
        ProcessCollector(namespace="rstored", registry=self._registry)
        self._answers: dict[tuple[str, str, int], _Series] = {}
        self._calls: dict[str, tuple[_Series, _Series]] = {}

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request by the template of its route, with the time that it took."""
        series = self._answers.get((route, method, status))
        if series is None:
            series = self._answers[route, method, status] = self._requests.labelled(route, method, str(status))
        series.observe(seconds)

    def observe_backend(self, operation: str, size: int, seconds: float) -> None:
        """Count one call of the backend, with the number of its requests and the time that it took."""
        series = self._calls.get(operation)
        if series is None:
            series = self._batches.labelled(operation), self._backend.labelled(operation)
            self._calls[operation] = series
        series[0].observe(size)
        series[1].observe(seconds)

    def count_closed_connection(self, reason: str) -> None:
        """Count a connection that the service closed although its client did not want that."""
        self._closed[reason] += 1

    def collect(self) -> Iterator[Metric]:
        """The metrics that are not histograms."""
        yield GaugeMetricFamily("rstored_connections", "Open connections, at the last second", self.connections)
        yield GaugeMetricFamily("rstored_requests_in_flight", "Requests under way", self.requests_in_flight)
        yield GaugeMetricFamily(
            "rstored_clock_ahead_seconds",
            "How far this machine's clock is ahead of the storage's",
            self.clock.machine_ahead_seconds,
        )
        closed = CounterMetricFamily(
            "rstored_closed_connections", "Connections closed by the service for its limits", labels=("reason",)
        )
        for reason, count in sorted(self._closed.items()):
            closed.add_metric((reason,), count)
        yield closed

    def render(self) -> bytes:
        """All metrics in Prometheus text form."""
        if self._worker is None:
            return generate_latest(self._registry)
        labelled = CollectorRegistry()
        labelled.register(_Labelled(self._registry, worker=str(self._worker)))
        return generate_latest(labelled)
