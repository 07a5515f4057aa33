"""The OpenAPI document and the page made of it."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from rstore.core.errors import PROBLEMS
from rstored.api.openapi import declare_routes, document
from rstored.api.reference_page import reference_page

DOCUMENT = document(declare_routes())
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def resolved(schema: Any) -> Any:
    """The schema with the components that its references point to."""
    return {**schema, "components": DOCUMENT["components"]}


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for response in operation["responses"].values():
        yield from response.get("content", {}).items()
    yield from operation.get("requestBody", {}).get("content", {}).items()


def descriptions(part: Any) -> Iterator[str]:
    """Every description in a part of the document."""
    if isinstance(part, dict):
        yield from (value for name, value in part.items() if name == "description" and isinstance(value, str))
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from descriptions(inner)


def test_no_description_has_the_indentation_of_the_code():
    assert [text for text in descriptions(DOCUMENT) if "\n " in text] == []


def test_the_head_of_the_document():
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["title"] == "rstored"
    assert [tag["name"] for tag in DOCUMENT["tags"]] == ["service", "namespaces", "kv", "ts", "es", "tokens"]
    assert len(OPERATIONS) > 40


def test_it_is_the_same_every_time():
    assert json.dumps(document(declare_routes())) == json.dumps(DOCUMENT)
    assert json.dumps(document(declare_routes(docs=False))) == json.dumps(DOCUMENT)


def test_the_committed_document_is_this_one():
    committed = Path(__file__).parents[3] / "openapi" / "openapi.json"
    assert json.loads(committed.read_text()) == DOCUMENT, "run `make openapi`"


def test_operation_ids_are_unique():
    ids = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_an_operation_is_described_whole(path, method, operation):
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    parameters = {(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", [])}
    assert {name for place, name in parameters if place == "path"} == {
        segment.strip("{}") for segment in path.split("/") if segment.startswith("{")
    }
    assert all(parameter["description"] for parameter in operation.get("parameters", []))
    assert any(int(status) < 300 for status in operation["responses"])
    assert all(response["description"] for response in operation["responses"].values())
    assert "HTTPValidationError" not in json.dumps(operation)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_its_problems_are_problems(path, method, operation):
    codes = set()
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            (content,) = response["content"].values()
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert all(PROBLEMS[code].status == int(status) for code in content["examples"])
            assert all(f"`{code}`" in response["description"] for code in content["examples"])
            codes |= set(content["examples"])
    assert {"unknown-parameter", "internal-error", "uri-too-long"} <= codes
    has_keys = "{key}" in path or "{token_id}" in path or (path.endswith("/kv") and method == "post")
    assert ("invalid-key" in codes) == has_keys
    assert ("invalid-namespace" in codes) == ("{namespace}" in path)
    assert ("body-too-large" in codes) == ("requestBody" in operation)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_its_bodies_have_examples_that_fit_their_schemas(path, method, operation):
    for media_type, content in contents(operation):
        if media_type == "application/problem+json":
            continue
        assert "example" in content, media_type
        if content.get("schema"):
            jsonschema.validate(content["example"], resolved(content["schema"]), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_json_goes_with_msgpack(path, method, operation):
    raw = path.endswith("/kv/{key}")
    for response in [*operation["responses"].values(), operation.get("requestBody", {})]:
        forms = response.get("content", {})
        if "application/json" in forms and not raw:
            assert forms["application/msgpack"]["schema"] == forms["application/json"]["schema"]


def test_every_problem_has_an_example_that_is_one():
    examples = DOCUMENT["components"]["examples"]
    assert set(examples) == set(PROBLEMS)
    for code, example in examples.items():
        jsonschema.validate(example["value"], DOCUMENT["components"]["schemas"]["Problem"])
        assert example["value"]["code"] == code


def test_every_reference_leads_somewhere_and_every_schema_is_used():
    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for member in part.values():
                yield from references(member)
        elif isinstance(part, list):
            for member in part:
                yield from references(member)

    found = set(references(DOCUMENT))
    known = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    assert found <= known
    unused = {reference for reference in known - found if "/schemas/" in reference}
    assert unused == set()


def test_schemas_are_schemas():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_bounds_and_choices_are_published():
    def parameter(path: str, name: str) -> dict[str, Any]:
        (found,) = [p for p in DOCUMENT["paths"][path]["get"]["parameters"] if p["name"] == name]
        return found

    freq = parameter("/ts/{key}/missing", "freq")
    assert freq["required"] is True
    assert freq["schema"]["minimum"] == 1
    assert parameter("/ts/{key}/range", "order")["schema"]["enum"] == ["asc", "desc"]
    assert parameter("/ts/{key}/range", "start")["required"] is False


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_reaches_for_nothing_and_shows_everything():
    text = reference_page(DOCUMENT)
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "img" not in page.tags
    assert all(link == "openapi.json" or link.removeprefix("#") in page.ids for link in page.links)
    for path, methods in DOCUMENT["paths"].items():
        assert path in text
        assert all(operation["operationId"] in page.ids for operation in methods.values())


def test_the_page_escapes_what_it_shows():
    described = msgspec.json.decode(msgspec.json.encode(DOCUMENT))
    described["info"]["title"] = "<script>alert(1)</script>"
    described["paths"]["/kv"]["get"]["summary"] = '"><img src=x>'
    text = reference_page(described)
    assert "<script>" not in text
    assert "<img" not in text


@pytest.mark.anyio
async def test_it_is_served(http):
    served = await http.get("/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.json() == DOCUMENT
    page = await http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-request-id"]
    assert (await http.post("/docs")).status_code == 405
