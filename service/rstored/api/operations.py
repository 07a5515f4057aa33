"""How an operation is declared: once, with everything that is needed to serve it and to describe it in OpenAPI."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_type_hints

import fastapi
from starlette.responses import Response

from rstore.core.errors import PROBLEMS
from rstore.core.media_types import MSGPACK_MEDIA_TYPE, PROBLEM_MEDIA_TYPE
from rstored.api.access import Rule
from rstored.api.media_types import JSON_FORMS
from rstored.api.parameters import KEY_PATTERN, Query
from rstored.api.replies import Reply
from rstored.engine.model import Access

Endpoint: TypeAlias = Callable[..., Awaitable[Reply]]

# The problem codes that every operation may answer with.
_ANYWHERE: Final = (
    "malformed-request",
    "unsupported-http-version",
    "unknown-parameter",
    "uri-too-long",
    "headers-too-large",
    "internal-error",
    "backend-corrupt",
    "overloaded",
    "deadline-exceeded",
    "cross-origin-request",
    "misdirected-request",
)
NAMESPACED: Final = "/ns/{namespace}"
BEARER: Final = "bearer"
"""The name of the security scheme in the OpenAPI document."""
_NAMESPACE: Final = Annotated[
    str,
    fastapi.Path(
        description="the namespace", min_length=1, max_length=128, pattern="^[A-Za-z0-9._-]+$", examples=["default"]
    ),
]
_KEY: Final = Annotated[
    str,
    fastapi.Path(
        description="the key: 1 to 512 bytes of UTF-8 without NUL, percent-encoded as one segment (`a/b` is `a%2Fb`)",
        min_length=1,
        pattern=KEY_PATTERN,
        examples=["user:1"],
    ),
]
_TOKEN_ID: Final = Annotated[
    str, fastapi.Path(description="the token's id, which is not secret", examples=["6f3a9c2e51d04b7a"])
]


class Content(NamedTuple):
    """A body in one media type, with an example. ``shape`` is a struct, or None for bytes without a schema."""

    shape: type | None
    example: Any


class Answer(NamedTuple):
    """A successful answer: its meaning, its bodies by media type, and its headers."""

    description: str
    content: Mapping[str, Content] = {}
    headers: Mapping[str, str] = {}


class RequestHeader(NamedTuple):
    """A header that an operation takes: its meaning, and the pattern of its values."""

    description: str
    pattern: str
    example: str


def json_content(shape: type, example: Any) -> dict[str, Content]:
    """The same shape in JSON and msgpack."""
    return {form: Content(shape, example) for form in JSON_FORMS}


def schema_of(shape: type) -> dict[str, Any]:
    """The reference to the schema of a struct. ``openapi.py`` puts the schema there."""
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


class Operation:
    """One method of one route, as an endpoint for FastAPI and for the front door.

    FastAPI reads its signature for OpenAPI. The front door calls ``endpoint(request)``, or ``endpoint(request, query)``
    if the operation takes a query. Nobody else calls it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        parameters: Sequence[str],
        headers: Mapping[str, RequestHeader],
        produces: tuple[str, ...],
        answers: Mapping[int, Answer],
        body: Mapping[str, Content],
        rule: Rule,
    ) -> None:
        query = get_type_hints(endpoint).get("query")
        self.endpoint = endpoint
        self.query: type[Query] = query or Query
        self.takes_query = query is not None
        self.produces = produces
        self.answers = answers
        self.body = body
        self.rule = rule
        self.__name__ = endpoint.__name__
        self.__doc__ = endpoint.__doc__
        self.__signature__ = _signature(parameters, query, headers)

    async def __call__(self, **_: Any) -> Response:
        raise NotImplementedError("the front door serves this route")


def _signature(
    parameters: Sequence[str], query: type[Query] | None, headers: Mapping[str, RequestHeader]
) -> inspect.Signature:
    """The signature that FastAPI turns into the operation's OpenAPI parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    declared = {"namespace": _NAMESPACE, "key": _KEY, "token_id": _TOKEN_ID}
    found = [inspect.Parameter(name, kind, annotation=declared[name]) for name in parameters]
    if query is not None:
        found.append(inspect.Parameter("query", kind, annotation=Annotated[query, fastapi.Query()]))
    for name, (description, pattern, example) in headers.items():
        declaration = fastapi.Header(alias=name, description=description, pattern=pattern, examples=[example])
        annotation = Annotated[str | None, declaration]
        found.append(inspect.Parameter(name.lower().replace("-", "_"), kind, default=None, annotation=annotation))
    return inspect.Signature(found)


class Operations:
    """The operations of one feature. ``declare_on`` passes them to FastAPI, each in both its forms."""

    def __init__(self, tag: str, description: str) -> None:
        self.tag = {"name": tag, "description": description}
        self._declarations: list[Callable[[fastapi.FastAPI], None]] = []

    def declare_on(self, app: fastapi.FastAPI) -> None:
        """Add every route to ``app``, in the order of declaration."""
        for declaration in self._declarations:
            declaration(app)

    def add(
        self,
        method: str,
        path: str,
        *,
        summary: str,
        answers: Mapping[int, Answer],
        problems: Sequence[str] = (),
        body: Mapping[str, Content] | None = None,
        body_required: bool = True,
        headers: Mapping[str, RequestHeader] | None = None,
        both_forms: bool = True,
        rule: Rule | None = None,
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare the decorated endpoint. Its docstring is the description of the operation.

        ``path`` has no namespace. With ``both_forms``, the route also exists under ``/ns/{namespace}``. ``problems``
        are the codes of this operation. The codes of its parameters and bodies are added.

        ``rule`` says who may carry it out. By default GET and HEAD need read access to the namespace, and all other
        methods need write access. A route without a namespace must give a rule.
        """
        if rule is None:
            if not both_forms and "{namespace}" not in path:
                raise ValueError(f"{method} {path} has no namespace, so it needs a rule")
            rule = Rule(Access.READ if method in ("GET", "HEAD") else Access.WRITE)

        def declare(endpoint: Endpoint) -> Endpoint:
            first = answers[min(answers)]
            produces = tuple(first.content) if MSGPACK_MEDIA_TYPE in first.content else ()
            for prefix in ("", NAMESPACED) if both_forms else ("",):
                route = prefix + path
                names = [name for name in ("namespace", "key", "token_id") if f"{{{name}}}" in route]
                operation = Operation(
                    endpoint,
                    parameters=names,
                    headers=headers or {},
                    produces=produces,
                    answers=answers,
                    body=body or {},
                    rule=rule,
                )
                codes = _codes(problems, operation, names, body, headers or {})
                extra: dict[str, Any] = {"security": [{BEARER: []}]} if rule.needs_token else {}
                if body is not None:
                    extra["requestBody"] = {"required": body_required, "content": _content(body)}
                name = f"{method.lower()}_{endpoint.__name__}" if method == "HEAD" else endpoint.__name__
                self._declarations.append(
                    _declaration(
                        route,
                        operation,
                        methods=[method],
                        operation_id=f"{self.tag['name']}_{name}{'_in_namespace' if prefix else ''}",
                        summary=summary,
                        description=inspect.getdoc(endpoint) or "",
                        tags=[self.tag["name"]],
                        status_code=min(answers),
                        responses={**_answers(answers), **_problems(codes, set(answers))},
                        openapi_extra=extra,
                        response_class=Response,
                    )
                )
            return endpoint

        return declare


def _declaration(route: str, operation: Operation, **arguments: Any) -> Callable[[fastapi.FastAPI], None]:
    return lambda app: app.add_api_route(route, operation, **arguments)


def _codes(
    problems: Sequence[str],
    operation: Operation,
    names: Sequence[str],
    body: Mapping[str, Content] | None,
    headers: Collection[str],
) -> set[str]:
    """The problem codes of an operation: its own, and those of its parameters, bodies and answers."""
    codes = {*problems, *_ANYWHERE}
    if operation.takes_query or headers:
        codes.add("invalid-parameter")
    if "Idempotency-Key" in headers:
        codes.add("idempotency-conflict")
    if operation.rule.needs_token:
        codes |= {"unauthenticated", "access-denied", "rate-limited", "backend-unavailable", "tokens-lost"}
    codes |= {"invalid-namespace" if name == "namespace" else "invalid-key" for name in names}
    if operation.produces:
        codes.add("not-acceptable")
    if body is not None:
        codes |= {"body-too-large", "unsupported-media-type", "request-timeout"}
        if MSGPACK_MEDIA_TYPE in body:
            codes |= {"malformed-body", "invalid-body", "nesting-too-deep"}
    return codes


def _content(content: Mapping[str, Content]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for media_type, (shape, _) in content.items():
        schema: dict[str, Any] = {"schema": schema_of(shape)} if shape is not None else {}
        # FastAPI drops every null, so document() adds the examples.
        described[media_type] = schema
    return described


def _answers(answers: Mapping[int, Answer]) -> dict[int | str, dict[str, Any]]:
    described: dict[int | str, dict[str, Any]] = {}
    for status, answer in answers.items():
        response: dict[str, Any] = {"description": answer.description}
        if answer.content:
            response["content"] = _content(answer.content)
        if answer.headers:
            response["headers"] = {
                name: {"description": description, "schema": {"type": "string"}}
                for name, description in answer.headers.items()
            }
        described[status] = response
    return described


def _problems(codes: set[str], taken: set[int]) -> dict[int | str, dict[str, Any]]:
    """One response for each status, with an example for each code."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in sorted(codes, key=lambda code: (PROBLEMS[code].status, code)):
        row = PROBLEMS[code]
        if row.status in taken:
            continue
        response = by_status.setdefault(
            row.status,
            {
                "description": "",
                "content": {
                    PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}},
                },
            },
        )
        response["description"] += ("; " if response["description"] else "") + f"`{code}`: {row.title}"
        reference = {"$ref": f"#/components/examples/{code}"}
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][code] = reference
    return by_status
