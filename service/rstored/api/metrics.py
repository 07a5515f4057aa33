"""What ``/metrics`` tells, in a registry of its own for each app, so that two apps in a process do not mix."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The service's histograms; the count of each is the number of requests, batches or backend calls."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "rstored_request_seconds",
            "Time from the request's head to the end of the answer",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "rstored_batch_size",
            "Requests that went to the backend together",
            ("operation",),
            buckets=_SIZES,
            registry=self.registry,
        )
        self._backend = Histogram(
            "rstored_backend_seconds",
            "Time of one call to the backend",
            ("operation",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Looking a child up by its labels costs more than all the rest, so each is looked up once.
        self._answers: dict[tuple[str, str, int], Histogram] = {}
        self._calls: dict[str, tuple[Histogram, Histogram]] = {}
        ProcessCollector(namespace="rstored", registry=self.registry)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request, by the template of its route, and how long it took."""
        answer = self._answers.get((route, method, status))
        if answer is None:
            answer = self._requests.labels(route, method, str(status))
            self._answers[route, method, status] = answer
        answer.observe(seconds)

    def observe_backend(self, operation: str, size: int, seconds: float) -> None:
        """Count one call of the backend: how many requests it served and how long it took."""
        children = self._calls.get(operation)
        if children is None:
            children = self._batches.labels(operation), self._backend.labels(operation)
            self._calls[operation] = children
        children[0].observe(size)
        children[1].observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus text form."""
        return generate_latest(self.registry)
