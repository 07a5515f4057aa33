"""Bodies that are called forms, as browsers and ``curl -d`` call them: refused wherever a body is taken."""

from __future__ import annotations

import json
import shutil
import subprocess

import httpx2
import pytest
from pydantic import SecretStr

from rstored.api.openapi import declare_routes, document
from rstored.app import running_app
from rstored.settings import Settings

pytestmark = pytest.mark.anyio

TOKEN = "x" * 40
NAMES = {"{namespace}": "n", "{key}": "k", "{token_id}": "0123456789abcdef"}
WITH_BODY = [
    (method.upper(), path)
    for path, methods in document(declare_routes())["paths"].items()
    for method, operation in methods.items()
    if "requestBody" in operation
]
FORMS = [
    "application/x-www-form-urlencoded",
    "Application/X-WWW-Form-URLencoded",
    "application/x-www-form-urlencoded; charset=UTF-8",
    "application/x-www-form-urlencoded ;charset=latin-1",
    "multipart/form-data; boundary=----WebKitFormBoundaryx",
    'MULTIPART/Form-Data; boundary="a b"',
    "multipart/form-data; boundary=not:a:token",
    "multipart/mixed",
    "multipart/x",
]
JSON_BODIES = [b"{}", b"1", b' {"events": []}\n', b'{"points": [[1, 2]]}', json.dumps({"namespaces": ["n"]}).encode()]
OTHER_BODIES = [b"", b"a=b&c=d", b"NaN", b"[" * 200 + b"]" * 200, b"\xff", b"--x\r\n\r\n--x--"]


@pytest.fixture
async def http(tmp_path, anyio_backend):
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", admin_token=SecretStr(TOKEN))
    async with running_app(settings) as app:
        transport = httpx2.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            yield http


def at(path: str) -> str:
    for name, value in NAMES.items():
        path = path.replace(name, value)
    return path


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_form_is_refused_with_the_header_to_send(http, method, path):
    for form in FORMS:
        for body in [*JSON_BODIES, *OTHER_BODIES]:
            answer = await http.request(method, at(path), content=body, headers={"Content-Type": form})
            assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type"), (form, body)
            assert "-H 'Content-Type: application/" in answer.json()["detail"], (form, body)
    assert (await http.get("/ns")).json()["items"] == []
    assert (await http.get("/tokens")).json()["items"] == []


async def test_a_value_is_told_by_what_it_is(http):
    for body in JSON_BODIES:
        answer = await http.put("/kv/k", content=body, headers={"Content-Type": FORMS[0]})
        assert "'Content-Type: application/json'" in answer.json()["detail"], body
    for body in OTHER_BODIES:
        answer = await http.put("/kv/k", content=body, headers={"Content-Type": FORMS[0]})
        assert "'Content-Type: application/octet-stream'" in answer.json()["detail"], body
        assert "--data-binary" in answer.json()["detail"]


def test_there_are_routes_with_a_body():
    assert len(WITH_BODY) > 10
    assert ("PUT", "/kv/{key}") in WITH_BODY


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("method", "path"), [("PUT", "/kv/k"), ("POST", "/kv"), ("POST", "/ts/s/range")])
async def test_what_the_problem_names_is_all_that_curl_lacks(serve, tmp_path, method, path):
    url = serve(f"sqlite:///{tmp_path}/store.db").url
    command = ["curl", "-sS", "-X", method, "-d", '{"points": [[1, 2]]}' if "ts" in path else "{}", url + path]

    def told(*options: str) -> str:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    problem = json.loads(told())
    assert problem["status"] == 415
    header = problem["detail"].partition("-H '")[2].partition("'")[0]
    assert "problem" not in told("-H", header)


@pytest.mark.parametrize(
    ("form", "body"), [("application/json", b""), ("application/json", b" \r\n\t"), ("application/msgpack", b"")]
)
async def test_an_empty_body_is_called_empty_and_what_is_expected_is_said(http, form, body):
    """Not that the data was truncated: nobody cut anything off."""
    asked = 0
    for method, path in WITH_BODY:
        if "{token_id}" in path or (form != "application/json" and path.endswith("/kv/{key}")):
            continue
        answer = await http.request(method, at(path), content=body, headers={"Content-Type": form})
        if answer.status_code >= 400:
            asked += 1
            assert "empty" in answer.json()["detail"], (method, path)
            assert "expected" in answer.json()["detail"], (method, path)
            assert answer.json()["code"] in ("malformed-body", "invalid-value"), (method, path)
    assert asked >= 8


async def test_no_value_of_a_batch_has_the_media_type_of_a_form(http):
    for form in FORMS:
        part = {"key": "k", "value": "YT1i", "encoding": "bytes", "media_type": form}
        refused = await http.post("/kv", json={"set": [part]})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-body"), form
        assert refused.json()["pointer"] == "/set/0/media_type"
    assert (await http.get("/kv")).json()["items"] == []
