"""The tree of the routes: which endpoint a path and a method lead to, and which segments of the path are names."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

import fastapi
from starlette.routing import Route as StarletteRoute

from rstored.api.access import Reach
from rstored.api.operations import Operation
from rstored.api.parameters import Query, parse_query
from rstored.api.replies import Header, Reply
from rstored.api.requests import Request
from rstored.problems import Problem

# It answers with a document that is the same for everybody.
Document: TypeAlias = Callable[[Request], Awaitable[Reply]]
# A variable in the path of a route, and its text in the path of the request.
Segment: TypeAlias = tuple[str, bytes]

# These are answered even when the service is overloaded, because operators need them then.
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Endpoint:
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


class Node:
    """A node in the tree of path segments. Either literal segments follow it, or one variable does."""

    __slots__ = ("allow", "endpoints", "literals", "name", "of_default", "variable")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.literals: dict[bytes, Node] = {}
        self.variable: Node | None = None
        self.endpoints: dict[str, Endpoint] = {}
        self.allow: Header = (b"allow", b"")
        # Whether its routes name no namespace, and so mean the default one.
        self.of_default = False

    def child(self, segment: str) -> Node:
        """The node that a segment of a route leads to. It is made if it does not exist."""
        if segment.startswith("{"):
            if self.variable is None:
                self.variable = Node(segment.strip("{}"))
            node = self.variable
        else:
            node = self.literals.setdefault(segment.encode(), Node())
        if self.literals and self.variable is not None:
            raise ValueError(f"{segment}: a variable segment would hide a literal one")
        return node


class Served(NamedTuple):
    """A row of :meth:`RouteTree.table`."""

    path: str
    method: str


class RouteTree:
    """The routes that ``declared`` has, as a tree of path segments."""

    def __init__(self, declared: fastapi.FastAPI) -> None:
        self._root = Node()
        for route in declared.routes:
            if isinstance(route, StarletteRoute):
                self._add(route)

    def find(self, raw_path: bytes) -> tuple[Node, list[Segment]]:
        """The node of the path, and the segments that are names. Raises Problem ``route-not-found``."""
        node = self._root
        names: list[Segment] = []
        segments = iter(raw_path.split(b"/"))
        next(segments)
        try:
            for segment in segments:
                variable = node.variable
                if variable is None:
                    node = node.literals[segment]
                else:
                    node = variable
                    names.append((node.name, segment))
        except KeyError:
            raise _no_route() from None
        if not node.endpoints:
            raise _no_route()
        return node, names

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

    def _add(self, route: StarletteRoute) -> None:
        declared = route.endpoint
        node = self._root
        for segment in route.path.split("/")[1:]:
            node = node.child(segment)
        for method in route.methods or ():
            node.endpoints[method] = Endpoint(route.path, method, declared)
            if isinstance(declared, Operation) and "{namespace}" not in route.path:
                node.of_default = declared.rule.reach is Reach.NAMESPACE
        node.allow = (b"allow", ", ".join(sorted({*node.endpoints, "OPTIONS"})).encode())


def _no_route() -> Problem:
    return Problem("route-not-found", "no route has this path; '/' in a key is written %2F, and no path ends in '/'")
