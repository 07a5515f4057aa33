"""The front door: serves every request over the routes that FastAPI declares, without its per-request machinery.

It splits the raw path before it decodes it, so a key may have any character. It checks names and query, chooses the
form of the answer, and calls the endpoint. For all routes in one place, it handles request ids, problems, metrics and
the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import fastapi

from rstored.api.access import OPEN
from rstored.api.admission import Admission
from rstored.api.media_types import negotiate
from rstored.api.parameters import checked_key, checked_namespace, decode_text, parse_query
from rstored.api.problems import problem_reply
from rstored.api.replies import CLIENT_GONE, ON_ALL, Header, Reply
from rstored.api.requests import DEFAULT_NAMESPACE, ClientGone, Request
from rstored.api.routing import Endpoint, Node, RouteTree, Segment
from rstored.api.state import ServiceState
from rstored.limits import Limits
from rstored.problems import Problem

# It sends the reply to a request. Raises ClientGone if the client does not read any more.
SendReply: TypeAlias = Callable[[Request, Reply], Awaitable[None]]
OpenState: TypeAlias = Callable[[], AbstractAsyncContextManager[ServiceState]]

logger = logging.getLogger("rstored.requests")

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}\Z")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
_SWEEP_SECONDS: Final = 1.0
_NAMESPACES_KEPT: Final = 1024
# A streamed answer counts as one page, which is in memory while the client reads the page before.
_STREAM_BYTES: Final = 4 * 2**20
_CHALLENGE: Final[Header] = (b"www-authenticate", b"Bearer")
_CHALLENGE_AGAIN: Final[Header] = (b"www-authenticate", b'Bearer error="invalid_token"')
_ON_ALL_OVER_TLS: Final[tuple[Header, ...]] = (*ON_ALL, (b"strict-transport-security", b"max-age=31536000"))


class FrontDoor:
    """Answers requests. ``open_state`` opens what it needs, and closes it again. ``declared`` has the routes.

    Enter :meth:`running`, and then call :meth:`serve` for each request, inside or outside of a task.
    """

    def __init__(self, declared: fastapi.FastAPI, open_state: OpenState) -> None:
        self._open_state = open_state
        self.routes = RouteTree(declared)
        self.admission = Admission()
        self._state: ServiceState | None = None
        self._ids = _request_ids()
        self._root_path = b""
        # The namespace that a segment names. The same few are asked for again and again.
        self._namespace: Callable[[bytes], str]
        # One task calls these once a second. A server adds its own. That takes less time than a timer for each request.
        self.sweeps: list[Callable[[], None]] = [self._end_late]

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
            self._namespace = functools.lru_cache(_NAMESPACES_KEPT)(functools.partial(_namespace, limits=state.limits))
            self._root_path = (state.root_path + "/").encode() if state.root_path else b""
            sweeper = asyncio.create_task(self._keep_sweeping())
            try:
                yield state
            finally:
                sweeper.cancel()
                self._state = None

    async def serve(self, request: Request, write: SendReply) -> None:
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
            self.admission.dismiss(request)

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
        node: Node | None = None
        names: list[Segment] = []
        endpoint: Endpoint | None = None
        try:
            node, names = self._find(request, state.limits.uri_bytes_max)
            endpoint = node.endpoints.get(method)
            rule = None
            if endpoint is not None:
                request.route = endpoint.route
                self.admission.admit(request, is_probe=endpoint.is_probe)
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
                if name == "namespace":
                    request.namespace = self._namespace(segment)
                else:
                    # The id of a token is a key.
                    request.key = checked_key(_decoded(segment, "key"), state.limits)
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

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for sweep in list(self.sweeps):
                try:
                    sweep()
                except Exception:
                    logger.exception("a sweep failed")

    def _end_late(self) -> None:
        """End requests that take too long, and tell the metrics how many are under way."""
        self.state.metrics.requests_in_flight = len(self.admission.under_way)
        self.admission.end_late()

    def _request_id(self, fields: dict[bytes, bytes]) -> bytes:
        given = fields.get(b"x-request-id")
        return given if given is not None and _REQUEST_ID.match(given) else next(self._ids)

    def _find(self, request: Request, uri_bytes_max: int) -> tuple[Node, list[Segment]]:
        """The node of the path, and the segments that are names. Raises :class:`Problem`."""
        raw_path = request.raw_path
        if self._root_path and (raw_path + b"/").startswith(self._root_path):
            raw_path = raw_path[len(self._root_path) - 1 :] or b"/"
        if len(raw_path) + len(request.query_string) >= uri_bytes_max:
            raise Problem(
                "uri-too-long", f"the request target is longer than {uri_bytes_max} bytes", limit=uri_bytes_max
            )
        return self.routes.find(raw_path)

    def _other(self, node: Node | None, method: str) -> tuple[str, str]:
        """The route and method under which a request without an endpoint is counted. The route may be "none".

        Unknown methods share one name.
        """
        template = "none" if node is None else next(iter(node.endpoints.values())).route[0]
        return template, method if method in _METHODS else "other"

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


def _request_ids() -> Iterator[bytes]:
    prefix = secrets.token_hex(6).encode()
    return (b"%b-%x" % (prefix, number) for number in itertools.count(1))


def _decoded(segment: bytes, what: str) -> str:
    """The text of a path segment. Raises Problem ``invalid-namespace`` or ``invalid-key``."""
    try:
        return decode_text(segment)
    except ValueError as error:
        raise Problem(f"invalid-{what}", f"the {what} cannot be read: {error}") from None


def _namespace(segment: bytes, limits: Limits) -> str:
    return checked_namespace(_decoded(segment, "namespace"), limits)


def _namespace_of(node: Node | None, names: list[Segment], limits: Limits) -> str | None:
    """The namespace of a path, even if the client may not know of it. None if the path has none."""
    for name, segment in names:
        if name == "namespace":
            try:
                return _namespace(segment, limits)
            except Problem:
                return None
    return DEFAULT_NAMESPACE if node is not None and node.of_default else None


def _without_endpoint(node: Node, request: Request) -> Reply:
    """The reply to a known path with another method: the allowed methods for OPTIONS, otherwise a problem."""
    if request.method == "OPTIONS":
        return Reply(204, (node.allow, *request.state.origins.preflight(request.fields, node.allow[1])))
    problem = Problem("method-not-allowed", f"this route takes {node.allow[1].decode()}")
    return problem_reply(problem, request.id.decode("ascii"), node.allow)


def _call(endpoint: Endpoint, request: Request) -> Awaitable[Reply]:
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
