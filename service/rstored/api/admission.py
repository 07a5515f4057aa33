"""Which requests are under way: how many at once, in all and of each client, and for how long."""

from __future__ import annotations

import time

from rstored.api.requests import Request
from rstored.problems import Problem
from rstored.turns import CLIENT


class Admission:
    """The requests under way, ``under_way``, and how many of them each client has, ``shares``."""

    def __init__(self) -> None:
        self.under_way: set[Request] = set()
        self.shares: dict[str, int] = {}

    def admit(self, request: Request, *, is_probe: bool) -> None:
        """Count the request as under way. Raises Problem ``overloaded`` if there are too many in all or of its client.

        So a client with many connections leaves room for the others.
        """
        limits = request.state.limits
        share = self.shares.get(request.client, 0)
        if not is_probe:
            if len(self.under_way) >= limits.requests_in_flight_max:
                raise Problem("overloaded", "the service has too many requests under way: try again")
            if share >= limits.requests_in_flight_per_client_max:
                raise Problem("overloaded", "this client has too many requests under way: try again")
        self.shares[request.client] = share + 1
        CLIENT.set(request.client)
        self.under_way.add(request)

    def dismiss(self, request: Request) -> None:
        """Count the request as no longer under way."""
        if request in self.under_way:
            self.under_way.remove(request)
            share = self.shares[request.client] - 1
            if share:
                self.shares[request.client] = share
            else:
                del self.shares[request.client]
            request.release()

    def end_late(self) -> None:
        """End requests that take too long."""
        now = time.perf_counter()
        for request in list(self.under_way):
            if request.late is None and request.task is not None:
                request.late = request.lateness(now)
                if request.late is not None:
                    request.task.cancel()
