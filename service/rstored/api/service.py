"""``/``, ``/healthz``, ``/readyz`` and ``/metrics``: what the service says about itself."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from rstored import __version__
from rstored.api.access import ANY_READER, PUBLIC, Reach, Rule
from rstored.api.answers import answer
from rstored.api.metrics import METRICS_MEDIA_TYPE
from rstored.api.operations import Answer, Content, Operations, json_content
from rstored.api.replies import Reply, content_type
from rstored.api.requests import Request
from rstored.engine.maintenance import clock_warning
from rstored.engine.model import Access
from rstored.limits import Limits
from rstored.problems import Problem

operations: Final = Operations("service", "The service: its description, health and metrics.")


class BackendInfo(Struct):
    """The storage backend."""

    name: str
    version: str
    durability: Annotated[str, Meta(description="how durable an acknowledged write is")]
    warning: (
        Annotated[
            str, Meta(description="why an acknowledged write may be lost, and what to do; absent if it is durable")
        ]
        | UnsetType
    ) = UNSET


class ServiceInfo(Struct):
    """The service: its version, backend, limits and routes."""

    name: str
    version: str
    backend: BackendInfo
    limits: Annotated[dict[str, int], Meta(description="every limit by name")]
    links: Annotated[dict[str, str], Meta(description="the routes by name; replace `{…}` by a name")]


class Status(Struct):
    """The state of the service."""

    status: str
    warning: (
        Annotated[str, Meta(description="what an operator should look at; absent if there is nothing")] | UnsetType
    ) = UNSET


_LINKS: Final = {
    "openapi": "/openapi.json",
    "docs": "/docs",
    "health": "/healthz",
    "readiness": "/readyz",
    "metrics": "/metrics",
    "namespaces": "/ns",
    "kv": "/ns/{namespace}/kv",
    "ts": "/ns/{namespace}/ts",
    "es": "/ns/{namespace}/es",
    "tokens": "/tokens",
}
_EXAMPLE: Final[dict[str, Any]] = {
    "name": "rstored",
    "version": __version__,
    "backend": {"name": "sqlite", "version": "3.45.1", "durability": "an acknowledged write survives a power failure"},
    "limits": Limits().model_dump(),
    "links": _LINKS,
}


@operations.add(
    "GET",
    "/",
    summary="Describe the service",
    answers={200: Answer("The description of the service", json_content(ServiceInfo, _EXAMPLE))},
    both_forms=False,
    rule=ANY_READER,
)
async def index(request: Request) -> Reply:
    """Name and version, the backend and how durable an acknowledged write is, every limit, and the routes."""
    state = request.state
    backend = state.backend.describe()
    links = {
        name: state.root_path + path for name, path in _LINKS.items() if state.docs or name not in ("openapi", "docs")
    }
    info = ServiceInfo(
        "rstored",
        __version__,
        BackendInfo(backend["name"], backend["version"], backend["durability"], backend.get("warning", UNSET)),
        state.limits.model_dump(),
        links,
    )
    return answer(request, info)


@operations.add(
    "GET",
    "/healthz",
    summary="Tell whether the process runs",
    answers={200: Answer("The process runs", json_content(Status, {"status": "ok"}))},
    both_forms=False,
    rule=PUBLIC,
)
async def healthz(request: Request) -> Reply:
    """The process runs. It does not ask the backend, so this succeeds even if the backend does not answer."""
    return answer(request, Status("ok"))


@operations.add(
    "GET",
    "/readyz",
    summary="Tell whether the service can serve requests",
    answers={200: Answer("The service can serve requests", json_content(Status, {"status": "ready"}))},
    problems=("backend-unavailable", "shutting-down", "tokens-lost"),
    both_forms=False,
    rule=PUBLIC,
)
async def readyz(request: Request) -> Reply:
    """503 if the backend does not answer, the service is stopping, or a closed store has lost its tokens."""
    if request.state.stopping:
        raise Problem("shutting-down", "the service is stopping; send requests elsewhere")
    await request.engine.ping()
    await request.state.authentication.check_storage()
    warning = clock_warning(request.state.backend.clock)
    return answer(request, Status("ready", UNSET if warning is None else warning))


@operations.add(
    "GET",
    "/metrics",
    summary="Prometheus metrics",
    answers={
        200: Answer(
            "Metrics in Prometheus text form",
            {"text/plain": Content(None, "# TYPE rstored_request_seconds histogram\n…")},
        )
    },
    both_forms=False,
    rule=Rule(Access.METRICS, Reach.SERVICE),
)
async def metrics(request: Request) -> Reply:
    """Requests by route, method, status and latency; batch sizes; backend latency; the process."""
    return Reply(200, (content_type(METRICS_MEDIA_TYPE),), request.state.metrics.render())
