"""The FastAPI app that declares every route, and the OpenAPI document that it generates from them."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

import fastapi
import msgspec
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from rstore.core.errors import PROBLEMS
from rstore.core.media_types import JSON_MEDIA_TYPE
from rstored import __version__
from rstored.api import es, kv, namespaces, service, tokens, ts
from rstored.api.operations import BEARER, Operation
from rstored.api.problems import PROBLEM_SCHEMA, problem_example
from rstored.api.reference_page import reference_page
from rstored.api.replies import Header, Reply, content_type
from rstored.api.requests import Request

FEATURES: Final = (service, namespaces, kv, ts, es, tokens)

_DESCRIPTION: Final = """\
A networked store for key/value pairs, time series and event sequences. Every data route exists twice: under
`/ns/{namespace}`, and without that prefix for the namespace `default`. A key is one percent-encoded path segment.
JSON routes also take and return `application/msgpack`. A store is closed once a token was made in it. A closed store
answers 401 without a valid token, and 403 beyond what the token reaches.
The answer to every failure is a problem document (RFC 9457) with a stable `code`."""

# The page is our own text and styles. It may load nothing and run nothing, and nobody may frame it.
_PAGE_HEADERS: Final[tuple[Header, ...]] = (
    content_type("text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)


def declare_routes(*, docs: bool = True, root_path: str = "") -> fastapi.FastAPI:
    """An app that declares every route; with ``docs`` also ``/openapi.json`` and ``/docs``.

    It serves nothing. The front door calls the endpoints.
    """
    app = fastapi.FastAPI(title="rstored", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    for feature in FEATURES:
        feature.operations.declare_on(app)
    if docs:
        # It is made at the first request, because most processes never get one, and a start should not wait for it.
        text = functools.cache(lambda: msgspec.json.encode(document(app, root_path)))
        page = functools.cache(lambda: reference_page(document(app, root_path)).encode())

        async def openapi_json(_: Request) -> Reply:
            return Reply(200, (content_type(JSON_MEDIA_TYPE),), text())

        async def reference(_: Request) -> Reply:
            return Reply(200, _PAGE_HEADERS, page())

        for path, endpoint in (("/openapi.json", openapi_json), ("/docs", reference)):
            app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)  # type: ignore[arg-type]
    return app


def document(app: fastapi.FastAPI, root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes, with the schemas of all bodies. Equal routes give equal documents."""
    described = get_openapi(
        title="rstored",
        version=__version__,
        summary="Key/value pairs, time series and event sequences over HTTP.",
        description=_DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        tags=[feature.operations.tag for feature in FEATURES],
        routes=app.routes,
        servers=[{"url": root_path}] if root_path else None,
    )
    shapes: dict[str, type] = {}
    for route in app.routes:
        if isinstance(route, APIRoute) and isinstance(route.endpoint, Operation):
            for method in route.methods or ():
                declared = described["paths"][route.path][method.lower()]
                _drop_nulls(declared.get("parameters", []))
                shapes |= _add_examples(declared, route.endpoint)
    _, schemas = msgspec.json.schema_components(list(shapes.values()), ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        # msgspec takes the docstring with the indentation of its lines, which Markdown would show as code.
        schema["description"] = inspect.cleandoc(schema["description"])
    found = described.setdefault("components", {}).setdefault("schemas", {})
    found.update(schemas, Problem=PROBLEM_SCHEMA)
    described["components"]["schemas"] = dict(sorted(found.items()))
    described["components"]["examples"] = {code: {"value": problem_example(code)} for code in sorted(PROBLEMS)}
    described["components"]["securitySchemes"] = {
        BEARER: {"type": "http", "scheme": "bearer", "description": "a token, if the store is closed; see `/tokens`"}
    }
    return described


def _drop_nulls(parameters: list[dict[str, Any]]) -> None:
    """Remove null from the types of parameters. A header or a query parameter cannot be null, but only absent."""
    for parameter in parameters:
        schema = parameter["schema"]
        others = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
        schema |= others[0] if len(others) == 1 else {"anyOf": others} if others else {}


def _add_examples(declared: dict[str, Any], operation: Operation) -> dict[str, type]:
    """Put the examples into the bodies of a declared operation. Returns the shapes of these bodies by name."""
    bodies = [(declared["responses"][str(status)], answer.content) for status, answer in operation.answers.items()]
    bodies.append((declared.get("requestBody", {}), operation.body))
    shapes: dict[str, type] = {}
    for described, contents in bodies:
        for media_type, content in contents.items():
            described["content"][media_type]["example"] = content.example
            if content.shape is not None:
                shapes[content.shape.__name__] = content.shape
    return shapes
