"""The front door: serves every request over the routes that FastAPI declares, without its per-request machinery.

It splits the raw path before it decodes it, so a key may have any character. It checks names and query, chooses the
form of the answer, and calls the endpoint. For all routes in one place, it handles request ids, problems, metrics and
the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, TypeAlias

import fastapi
from starlette.routing import Route as StarletteRoute

from rstored.api.access import OPEN, Reach
from rstored.api.media_types import negotiate
from rstored.api.operations import Operation
from rstored.api.parameters import Query, checked_key, checked_namespace, decode_text, parse_query
from rstored.api.problems import problem_reply
from rstored.api.replies import CLIENT_GONE, ON_ALL, Header, Reply
from rstored.api.requests import DEFAULT_NAMESPACE, ClientGone, Request
from rstored.api.state import ServiceState
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.turns import CLIENT

__all__ = ["FrontDoor", "Served", "Write"]

# It sends the reply to a request. Raises ClientGone if the client does not read any more.
Write: TypeAlias = Callable[[Request, Reply], Awaitable[None]]
# It answers with a document that is the same for everybody.
Document: TypeAlias = Callable[[Request], Awaitable[Reply]]
# A variable in the path of a route, and its text in the path of the request.
_Segment: TypeAlias = tuple[str, bytes]
OpenState: TypeAlias = Callable[[], AbstractAsyncContextManager[ServiceState]]

logger = logging.getLogger("rstored.requests")

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}\Z")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
# These are answered even when the service is overloaded, because operators need them then.
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_SWEEP_SECONDS: Final = 1.0
# A streamed answer counts as one page, which is in memory while the client reads the page before.
_STREAM_BYTES: Final = 4 * 2**20
_CHALLENGE: Final[Header] = (b"www-authenticate", b"Bearer")
_CHALLENGE_AGAIN: Final[Header] = (b"www-authenticate", b'Bearer error="invalid_token"')
# The variables of paths: for each the attribute of the request, and the check. The id of a token is a key.
_NAMES: Final[dict[str, tuple[str, Callable[[str, Limits], str]]]] = {
    "namespace": ("namespace", checked_namespace),
    "key": ("key", checked_key),
    "token_id": ("key", checked_key),
}
_ON_ALL_OVER_TLS: Final[tuple[Header, ...]] = (*ON_ALL, (b"strict-transport-security", b"max-age=31536000"))


class _Endpoint:
    """A route and method, ready to be called: an operation, or a document, which takes only the request.

    ``rule`` is None if no token is needed. Requests are counted under ``route``.
    """

    __slots__ = ("default_query", "document", "is_probe", "operation", "route", "rule")

    def __init__(self, template: str, method: str, endpoint: Operation | Document) -> None:
        operation = endpoint if isinstance(endpoint, Operation) else None
        self.route = (template, method)
        self.operation = operation
        self.document: Document | None = None if isinstance(endpoint, Operation) else endpoint
        self.is_probe = template in _PROBES
        self.rule = operation.rule if operation is not None and operation.rule.needs_token else None
        self.default_query: Query | None = None
        if operation is not None:
            with contextlib.suppress(Problem):
                self.default_query = parse_query(b"", operation.query)


class _Node:
    """A node in the tree of path segments. Either literal segments follow it, or one variable does."""

    __slots__ = ("allow", "endpoints", "literals", "name", "of_default", "variable")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.literals: dict[bytes, _Node] = {}
        self.variable: _Node | None = None
        self.endpoints: dict[str, _Endpoint] = {}
        self.allow: Header = (b"allow", b"")
        # Whether its routes name no namespace, and so mean the default one.
        self.of_default = False

    def child(self, segment: str) -> _Node:
        """The node that a segment of a route leads to. It is made if it does not exist."""
        if segment.startswith("{"):
            if self.variable is None:
                self.variable = _Node(segment.strip("{}"))
            node = self.variable
        else:
            node = self.literals.setdefault(segment.encode(), _Node())
        if self.literals and self.variable is not None:
            raise ValueError(f"{segment}: a variable segment would hide a literal one")
        return node


class Served(NamedTuple):
    """A row of :meth:`FrontDoor.table`."""

    path: str
    method: str


class FrontDoor:
    """Answers requests. ``open_state`` opens what it needs, and closes it again. ``declared`` has the routes.

    Enter :meth:`running`, and then call :meth:`serve` for each request, inside or outside of a task.
    """

    def __init__(self, declared: fastapi.FastAPI, open_state: OpenState) -> None:
        self._open_state = open_state
        self._root = _Node()
        self._state: ServiceState | None = None
        self._ids = _request_ids()
        self._root_path = b""
        # The requests under way, and how many of them each client has.
        self.under_way: set[Request] = set()
        self.shares: dict[str, int] = {}
        # One task calls these once a second. A server adds its own. That takes less time than a timer for each request.
        self.sweeps: list[Callable[[], None]] = [self._end_late]
        for route in declared.routes:
            if isinstance(route, StarletteRoute):
                self._add(route)

    def _add(self, route: StarletteRoute) -> None:
        declared = route.endpoint
        node = self._root
        for segment in route.path.split("/")[1:]:
            node = node.child(segment)
        for method in route.methods or ():
            node.endpoints[method] = _Endpoint(route.path, method, declared)
            if isinstance(declared, Operation) and "{namespace}" not in route.path:
                node.of_default = declared.rule.reach is Reach.NAMESPACE
        node.allow = (b"allow", ", ".join(sorted({*node.endpoints, "OPTIONS"})).encode())

    def table(self) -> list[Served]:
        """Every path and method that is served."""
        found: list[Served] = []
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            found += (Served(*endpoint.route) for endpoint in node.endpoints.values())
            nodes += node.literals.values()
            if node.variable is not None:
                nodes.append(node.variable)
        return sorted(found)

    @property
    def state(self) -> ServiceState:
        """What the running service owns. ``RuntimeError`` if it is not running."""
        if self._state is None:
            raise RuntimeError("the service is not running: enter `running()` first")
        return self._state

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ServiceState]:
        """Open the backend and start the engine. Stop and close them at the end."""
        async with self._open_state() as state:
            self._state = state
            self._root_path = (state.root_path + "/").encode() if state.root_path else b""
            sweeper = asyncio.create_task(self._keep_sweeping())
            try:
                yield state
            finally:
                sweeper.cancel()
                self._state = None

    # --- one request ---------------------------------------------------------------------------------------

    async def serve(self, request: Request, write: Write) -> None:
        """Answer the request, write the reply, and count the request.

        This also returns if the reply cannot be written to its end. The server then aborts the connection, so that no
        client takes a part of the reply for the whole.
        """
        try:
            reply = await self.answer(request)
            status = reply.status
            try:
                await write(request, reply)
            except (Exception, asyncio.CancelledError) as error:
                # The rest of a stream failed, or the client reads too slowly, or is gone.
                status = self._failed(error, request).status
            finally:
                if not isinstance(reply.body, bytes):
                    await reply.body.aclose()
            self._finish(request, status)
        finally:
            self._dismiss(request)

    async def answer(self, request: Request) -> Reply:
        """The reply to the request, even if it fails. The request is under way until :meth:`serve` has written it."""
        state = self.state
        request.state = state
        request.engine = state.engine
        method, fields = request.method, request.fields
        request.id = self._request_id(fields)
        if request.is_tls:
            request.on_all = _ON_ALL_OVER_TLS
        if b"origin" in fields:
            request.on_all += state.origins.headers(fields)
        node: _Node | None = None
        names: list[_Segment] = []
        endpoint: _Endpoint | None = None
        try:
            node, names = self._find(request, state.limits.uri_bytes_max)
            endpoint = node.endpoints.get(method)
            rule = None
            if endpoint is not None:
                request.route = endpoint.route
                self._admit(endpoint, request)
                rule = endpoint.rule
            if rule is not None:
                authorization = fields.get(b"authorization")
                grant = state.authentication.known(authorization, request.started)
                if grant is None:
                    grant = await state.authentication.authenticate(authorization, request.client)
                if grant.rate is not None:
                    grant.rate.take(request.started)
                request.grant = grant
                if grant is OPEN:
                    state.origins.check_open(method, fields)
            for name, segment in names:
                attribute, check = _NAMES[name]
                setattr(request, attribute, check(_decoded(segment, attribute), state.limits))
            if rule is not None:
                rule.check(request.grant, request.namespace)
            if endpoint is None:
                reply = _without_endpoint(node, request)
            elif endpoint.document is not None:
                reply = await endpoint.document(request)
            else:
                reply = await _call(endpoint, request)
            body = reply.body
            if isinstance(body, bytes):
                request.hold(len(body))
            else:
                reply = await _begun(reply, body, request)
        except (Exception, asyncio.CancelledError) as error:
            reply = self._failed(error, request)
        finally:
            request.end_turn()
        if endpoint is None:
            request.route = self._other(node, method)
        if state.access_log:
            request.subject = _namespace_of(node, names, state.limits)
        return reply

    # --- how much at once, and how long --------------------------------------------------------------------

    def _admit(self, endpoint: _Endpoint, request: Request) -> None:
        """Count the request as under way. Raises Problem ``overloaded`` if there are too many in all or of its client.

        So a client with many connections leaves room for the others.
        """
        limits = request.state.limits
        share = self.shares.get(request.client, 0)
        if not endpoint.is_probe:
            if len(self.under_way) >= limits.requests_in_flight_max:
                raise Problem("overloaded", "the service has too many requests under way: try again")
            if share >= limits.requests_in_flight_per_client_max:
                raise Problem("overloaded", "this client has too many requests under way: try again")
        self.shares[request.client] = share + 1
        CLIENT.set(request.client)
        self.under_way.add(request)

    def _dismiss(self, request: Request) -> None:
        """Count the request as no longer under way."""
        if request in self.under_way:
            self.under_way.remove(request)
            share = self.shares[request.client] - 1
            if share:
                self.shares[request.client] = share
            else:
                del self.shares[request.client]
            request.release()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for sweep in list(self.sweeps):
                try:
                    sweep()
                except Exception:
                    logger.exception("a sweep failed")

    def _end_late(self) -> None:
        """End requests that take too long."""
        now = time.perf_counter()
        self.state.metrics.requests_in_flight = len(self.under_way)
        for request in list(self.under_way):
            if request.late is None and request.task is not None:
                request.late = request.lateness(now)
                if request.late is not None:
                    request.task.cancel()

    # --- before the endpoint -------------------------------------------------------------------------------

    def _request_id(self, fields: dict[bytes, bytes]) -> bytes:
        given = fields.get(b"x-request-id")
        return given if given is not None and _REQUEST_ID.match(given) else next(self._ids)

    def _find(self, request: Request, uri_bytes_max: int) -> tuple[_Node, list[_Segment]]:
        """The node of the path, and the segments that are names. Raises :class:`Problem`."""
        raw_path = request.raw_path
        if self._root_path and (raw_path + b"/").startswith(self._root_path):
            raw_path = raw_path[len(self._root_path) - 1 :] or b"/"
        if len(raw_path) + len(request.query_string) >= uri_bytes_max:
            raise Problem(
                "uri-too-long", f"the request target is longer than {uri_bytes_max} bytes", limit=uri_bytes_max
            )
        node = self._root
        names: list[_Segment] = []
        segments = iter(raw_path.split(b"/"))
        next(segments)
        for segment in segments:
            child = node.literals.get(segment)
            if child is None:
                child = node.variable
                if child is None:
                    raise _no_route()
                names.append((child.name, segment))
            node = child
        if not node.endpoints:
            raise _no_route()
        return node, names

    def _other(self, node: _Node | None, method: str) -> tuple[str, str]:
        """The route and method under which a request without an endpoint is counted. The route may be "none".

        Unknown methods share one name.
        """
        template = "none" if node is None else next(iter(node.endpoints.values())).route[0]
        return template, method if method in _METHODS else "other"

    # --- after the endpoint --------------------------------------------------------------------------------

    def _failed(self, error: BaseException, request: Request) -> Reply:
        """The reply to a request that ended in ``error``. Faults of the service are logged.

        A request that was cancelled because it is late ends in its problem. Any other cancellation is raised again.
        """
        request_id = request.id.decode("ascii")
        request.release()
        if isinstance(error, ClientGone):
            return Reply(CLIENT_GONE)
        if isinstance(error, asyncio.CancelledError):
            if request.late is None:
                raise error
            if request.task is not None:
                request.task.uncancel()
            problem = request.late
        elif isinstance(error, Problem):
            problem = error
        else:
            problem = Problem("internal-error", "the service failed; its log has the reason under this request id")
        # Under overload, a line for each request would take longer than the answers. The metrics count them.
        if problem.type.status >= 500 and problem.code != "overloaded":
            logger.error(
                problem.code,
                exc_info=None if problem in (error, request.late) else error,
                extra={
                    "request_id": request_id,
                    "client": request.client,
                    "route": request.route[0] if request.route else None,
                    "detail": problem.detail,
                },
            )
        if problem.code == "unauthenticated":
            return problem_reply(
                problem, request_id, _CHALLENGE_AGAIN if b"authorization" in request.fields else _CHALLENGE
            )
        return problem_reply(problem, request_id)

    def _finish(self, request: Request, status: int) -> None:
        """Count the request, refused or not, and log it if the settings say so."""
        seconds = time.perf_counter() - request.started
        state = request.state
        assert request.route is not None
        template, method = request.route
        state.metrics.observe_request(template, method, status, seconds)
        if state.access_log:
            logger.info(
                "request",
                extra={
                    "request_id": request.id.decode("ascii"),
                    "method": method,
                    "route": template,
                    "namespace": request.subject,
                    "client": request.client,
                    "token_id": request.grant.token_id,
                    "status": status,
                    "milliseconds": round(seconds * 1000, 3),
                },
            )


# --- steps of a request ------------------------------------------------------------------------------------


def _request_ids() -> Iterator[bytes]:
    prefix = secrets.token_hex(6).encode()
    return (b"%b-%x" % (prefix, number) for number in itertools.count(1))


def _no_route() -> Problem:
    return Problem("route-not-found", "no route has this path; '/' in a key is written %2F, and no path ends in '/'")


def _decoded(segment: bytes, what: str) -> str:
    """The text of a path segment. Raises Problem ``invalid-namespace`` or ``invalid-key``."""
    try:
        return decode_text(segment)
    except ValueError as error:
        raise Problem(f"invalid-{what}", f"the {what} cannot be read: {error}") from None


def _namespace_of(node: _Node | None, names: list[_Segment], limits: Limits) -> str | None:
    """The namespace of a path, even if the client may not know of it. None if the path has none."""
    for name, segment in names:
        if name == "namespace":
            try:
                return checked_namespace(_decoded(segment, name), limits)
            except Problem:
                return None
    return DEFAULT_NAMESPACE if node is not None and node.of_default else None


def _without_endpoint(node: _Node, request: Request) -> Reply:
    """The reply to a known path with another method: the allowed methods for OPTIONS, otherwise a problem."""
    if request.method == "OPTIONS":
        return Reply(204, (node.allow, *request.state.origins.preflight(request.fields, node.allow[1])))
    problem = Problem("method-not-allowed", f"this route takes {node.allow[1].decode()}")
    return problem_reply(problem, request.id.decode("ascii"), node.allow)


def _call(endpoint: _Endpoint, request: Request) -> Awaitable[Reply]:
    """Check the query, choose the form of the answer, and call the endpoint. Raises :class:`Problem`."""
    operation = endpoint.operation
    assert operation is not None
    query = endpoint.default_query
    if request.query_string or query is None:
        query = parse_query(request.query_string, operation.query)
    offered = operation.produces
    if offered:
        accept = request.fields.get(b"accept")
        if accept is None or accept == b"*/*":
            request.form = offered[0]
        else:
            form = negotiate(accept.decode("latin-1"), offered)
            if form is None:
                raise Problem("not-acceptable", f"Accept allows none of the forms of this route: {', '.join(offered)}")
            request.form = form
    return operation.endpoint(request, query) if operation.takes_query else operation.endpoint(request)


async def _begun(reply: Reply, body: AsyncGenerator[bytes, None], request: Request) -> Reply:
    """The reply with the first two chunks of its body, so that an error before them becomes a problem.

    A body without further chunks is sent whole.
    """
    try:
        first = await anext(body, b"")
        second = await anext(body, None)
        if second is not None:
            limits = request.state.limits
            request.hold(min(_STREAM_BYTES, limits.in_flight_bytes_max, limits.in_flight_bytes_per_client_max))
            return Reply(reply.status, reply.headers, body, (first, second))
    except BaseException:
        await body.aclose()
        raise
    await body.aclose()
    return Reply(reply.status, reply.headers, first)
