"""The examples and tables of docs/rest.md, docs/sdk.md and docs/security.md, run against a real service."""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import inspect
import io
import json
import operator
import pickle
import re
import secrets
import shutil
import subprocess
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

import rstore.core.errors
from rstore import AsyncStore, Store, StoreEncodingError, generate_key
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import PROBLEMS
from rstore.core.frames import encode
from rstore.core.points import Points
from rstore.pickles import dumps, loads
from rstore.pickles.harmless import GLOBALS
from rstored.limits import Limits

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def server(serve, tmp_path) -> str:
    """The address of a service with an empty store."""
    return serve(f"sqlite:///{tmp_path / 'rstore.db'}").url


@pytest.fixture
def http(server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=20) as http:
        yield http


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), flags=re.MULTILINE | re.DOTALL)


def rows(name: str, title: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- rest.md: examples ---------------------------------------------------------------------------------------

REQUEST = re.compile(r"(GET|HEAD|OPTIONS|PUT|POST|DELETE) (/\S*)\Z")
HEADER = re.compile(r"([A-Z][A-Za-z-]*): (.*)\Z")


class Exchange(NamedTuple):
    """A request, and what its answer is said to be."""

    method: str
    target: str
    headers: dict[str, str]
    body: str
    status: int
    answer_headers: dict[str, str]
    answer: str


def exchanges(block: str) -> Iterator[Exchange]:
    for text in block.strip().split("\n\n"):
        request, _, answer = text.partition("\n→ ")
        first, *lines = request.splitlines()
        status, *answer_lines = answer.splitlines()
        method, target = REQUEST.match(first).groups()
        yield Exchange(method, target, *split(lines), int(status), *split(answer_lines))


def split(lines: list[str]) -> tuple[dict[str, str], str]:
    """The headers and the body in the lines of a message."""
    headers = {}
    while lines and (header := HEADER.match(lines[0])):
        headers[header[1]] = header[2]
        lines = lines[1:]
    return headers, "\n".join(lines)


def send(http: httpx2.Client, method: str, target: str, headers: dict[str, str], body: bytes) -> httpx2.Response:
    """Send the request with exactly this target; a body is JSON unless the headers say otherwise."""
    if body and "Content-Type" not in headers:
        headers = {**headers, "Content-Type": "application/json"}
    url = http.base_url.copy_with(raw_path=target.encode())
    return http.request(method, url, content=body or None, headers=headers)


def like(found: Any, told: Any) -> bool:
    """Whether ``found`` is what the page shows; ``…`` stands for anything, as a member for any further members."""
    if told == "…":
        return True
    if isinstance(told, dict) and isinstance(found, dict):
        names = told.keys() - {"…"}
        return (names == found.keys() or ("…" in told and names <= found.keys())) and all(
            like(found[name], told[name]) for name in names
        )
    if isinstance(told, list) and isinstance(found, list):
        return len(told) == len(found) and all(map(like, found, told))
    return type(found) is type(told) and found == told


def test_the_examples_of_rest_get_the_answers_they_show(http):
    told = [exchange for block in blocks("rest.md", "http") for exchange in exchanges(block)]
    assert len(told) > 50
    etags: dict[str, str] = {}
    for exchange in told:
        headers = {name: etags.get(value, value) for name, value in exchange.headers.items()}
        found = send(http, exchange.method, exchange.target, headers, exchange.body.encode())
        assert found.status_code == exchange.status, (exchange, found.text)
        for name, value in exchange.answer_headers.items():
            assert name in found.headers, exchange
            if name == "ETag":
                value = etags.setdefault(value, found.headers[name])
            assert value in ("…", found.headers[name]), (exchange, found.headers[name])
        if "json" in found.headers.get("content-type", "") and "ndjson" not in found.headers["content-type"]:
            if exchange.answer:
                assert like(found.json(), json.loads(exchange.answer)), (exchange, found.text)
        else:
            assert found.text.replace("\r\n", "\n").removesuffix("\n") == exchange.answer, exchange


def test_every_section_of_rest_has_examples():
    sections = re.split(r"^## ", page("rest.md"), flags=re.MULTILINE)[1:]
    with_examples = {section.splitlines()[0] for section in sections if "```http" in section}
    assert with_examples == {
        "Service",
        "Access",
        "Namespaces",
        "Key/value",
        "Time series",
        "Event sequences",
        "Problems",
    }


# --- rest.md: bad input --------------------------------------------------------------------------------------


def fill(http: httpx2.Client) -> None:
    """What the table of bad input says is there."""
    assert http.put("/kv/k", json={"a": 1}).is_success
    assert http.post("/ts/s/range", json={"points": [[1, 1], [5, 5]]}).is_success
    assert http.post("/es/e/events", json={"events": [{"item": "n", "value": 5}], "timestamp": 1}).is_success


def everything(http: httpx2.Client) -> list[str]:
    targets = ("/ns", "/kv?values=true", "/ts", "/ts/s/range", "/es", "/es/e/events", "/es/e/current")
    return [http.get(target).text for target in targets]


def octets(text: str) -> bytes:
    r"""The bytes of a body as the table writes it: ``\xff`` is a byte, ``5 × [`` is five of them."""
    if repeated := re.match(r"(\d+) × (.)\Z", text):
        return repeated[2].encode() * int(repeated[1])
    parts = re.split(r"\\x([0-9a-f]{2})", text)
    return b"".join(bytes.fromhex(part) if number % 2 else part.encode() for number, part in enumerate(parts))


def test_bad_input_gets_the_answers_of_the_table_and_changes_nothing(http):
    fill(http)
    before = everything(http)
    table = rows("rest.md", "Bad input")
    assert len(table) > 60
    failures = []
    for wrong, request, told in table:
        (first, *spans) = codes(request)
        headers, body = split(spans)
        method, target = first.split(" ")
        found = send(http, method, target, headers, octets(body))
        status, code = int(told.split()[0]), "".join(codes(told))
        problem = found.json()["code"] if found.is_error else ""
        if (found.status_code, problem) != (status, code) or (code and PROBLEMS[code].status != status):
            failures.append(f"{wrong}: {found.status_code} {problem}, told {told}")
    assert everything(http) == before
    assert not failures, "\n".join(failures)


# --- rest.md: limits -----------------------------------------------------------------------------------------

SMALL = {
    "key_bytes_max": 10,
    "namespace_length_max": 5,
    "uri_bytes_max": 1024,
    "value_bytes_max": 2000,
    "body_bytes_max": 3000,
    "frames_bytes_max": 4000,
    "nesting_max": 4,
    "batch_parts_max": 3,
    "points_per_call_max": 3,
    "events_per_call_max": 3,
    "page_size_max": 5,
    "page_bytes_max": 1500,
    "answer_points_max": 5,
    "grid_steps_max": 6,
    "state_bytes_max": 500,
    "refolded_events_max": 3,
    "sequence_bytes_max": 900,
}


@pytest.fixture(scope="module")
def limited(serve_module, tmp_path_factory) -> Iterator[httpx2.Client]:
    """A client of a service with small limits."""
    limits = {name.upper(): limit for name, limit in SMALL.items()}
    url = serve_module(f"sqlite:///{tmp_path_factory.mktemp('limits') / 'store.db'}", limits=limits).url
    with httpx2.Client(base_url=url, timeout=20) as http:
        for name in ("a", "b"):
            assert http.put(f"/kv/{name}", json="x" * 1490).is_success
        for start in range(0, 6, 3):
            assert http.post("/ts/s/range", json={"points": [[t, t] for t in range(start, start + 3)]}).is_success
        yield http


def events(*values: str) -> dict[str, Any]:
    return {"events": [{"item": f"i{number}", "value": value} for number, value in enumerate(values)]}


def encoded(size: int) -> dict[str, Any]:
    """An apply of a value that only a client can fold."""
    return {"events": [{"item": "a", "value": base64.b64encode(bytes(size)).decode(), "encoding": "sealed"}]}


def at_a_past_time(http: httpx2.Client) -> httpx2.Response:
    """A sequence whose state was larger than it may be now."""
    sealed = encoded(350)["events"][0]
    for t, event in (
        (1, sealed),
        (9, encoded(1)["events"][0]),
        (2, {**sealed, "op": "add"}),
        (3, {**sealed, "op": "add"}),
    ):
        assert http.post("/es/p/events", json={"events": [event], "timestamp": t}).is_success
    return http.get("/es/p/past?t=5")


def an_apply_before(http: httpx2.Client, key: str, later: int) -> httpx2.Response:
    """An apply between the first event of an item and ``later`` others."""
    for t, op in ((1, "setitem"), *((t, "add") for t in range(3, 3 + later))):
        event = {"item": "a", "op": op, "value": 1}
        assert http.post(f"/es/{key}/events", json={"events": [event], "timestamp": t}).is_success
    return http.post(f"/es/{key}/events", json={"events": [{"item": "a", "op": "neg"}], "timestamp": 2})


def frame(size: int) -> bytes:
    """Three points that do not compress, as a frame of so many bytes."""
    empty = len(encode(Points.from_values([(t, Value(Encoding.SEALED, b"")) for t in range(3)])))
    sizes = [1000, 1000, size - empty - 2000]
    return encode(Points.from_values([(t, Value(Encoding.SEALED, bytes(length))) for t, length in enumerate(sizes)]))


MSGPACK = {"Accept": "application/msgpack"}
FRAMES = {"Content-Type": "application/vnd.rstore.points"}
Ask = Callable[[httpx2.Client], httpx2.Response]

# For each limit what just keeps it, and what passes it, one for each answer of the table.
BOTH_SIDES: dict[str, tuple[Ask, list[Ask]]] = {
    "key_bytes_max": (
        lambda http: http.put("/kv/" + "x" * 10, json=1),
        [lambda http: http.put("/kv/" + "x" * 11, json=1)],
    ),
    "namespace_length_max": (
        lambda http: http.put("/ns/" + "x" * 5),
        [lambda http: http.put("/ns/" + "x" * 6)],
    ),
    "uri_bytes_max": (
        lambda http: http.get("/kv?prefix=" + "x" * (1024 - len("/kv?prefix="))),
        [lambda http: http.get("/kv?prefix=" + "x" * (1025 - len("/kv?prefix=")))],
    ),
    "value_bytes_max": (
        lambda http: http.put("/kv/v", content=bytes(2000)),
        [lambda http: http.put("/kv/v", content=bytes(2001))],
    ),
    "body_bytes_max": (
        lambda http: http.post("/kv", content=b"{}".ljust(3000)),
        [
            lambda http: http.post("/kv", content=b"{}".ljust(3001)),
            lambda http: http.post("/kv", json={"get": ["a", "b", "a"]}),
        ],
    ),
    "frames_bytes_max": (
        lambda http: http.post("/ts/f/range", content=frame(4000), headers=FRAMES),
        [lambda http: http.post("/ts/f/range", content=frame(4001), headers=FRAMES)],
    ),
    "nesting_max": (
        lambda http: http.put("/kv/n", content=b"[[[[]]]]", headers={"Content-Type": "application/json"}),
        [lambda http: http.put("/kv/n", content=b"[[[[[]]]]]", headers={"Content-Type": "application/json"})],
    ),
    "batch_parts_max": (
        lambda http: http.post("/kv", json={"get": ["x"], "delete": ["y", "z"]}),
        [lambda http: http.post("/kv", json={"get": ["x", "w"], "delete": ["y", "z"]})],
    ),
    "points_per_call_max": (
        lambda http: http.post("/ts/p/range", json={"points": [[t, t] for t in range(3)]}),
        [lambda http: http.post("/ts/p/range", json={"points": [[t, t] for t in range(4)]})],
    ),
    "events_per_call_max": (
        lambda http: http.post("/es/e/events", json=events("", "", "")),
        [lambda http: http.post("/es/e/events", json=events("", "", "", ""))],
    ),
    "page_size_max": (lambda http: http.get("/kv?limit=5"), [lambda http: http.get("/kv?limit=6")]),
    "page_bytes_max": (
        lambda http: http.get("/kv?values=true&match=a&limit=1"),
        [lambda http: http.get("/kv?values=true")],
    ),
    "answer_points_max": (
        lambda http: http.get("/ts/s/range?n=5", headers=MSGPACK),
        [lambda http: http.get("/ts/s/range", headers=MSGPACK)],
    ),
    "grid_steps_max": (
        lambda http: http.get("/ts/s/missing?start=0&end=5&freq=1"),
        [lambda http: http.get("/ts/s/missing?start=0&end=6&freq=1")],
    ),
    "state_bytes_max": (
        lambda http: http.post("/es/st/events", json=events("x" * 498)),
        [
            lambda http: http.post("/es/st/events", json={"events": [{"item": "i0", "op": "mul", "value": 2}]}),
            lambda http: http.post("/es/st/events", json=events("x" * 499)),
        ],
    ),
    "refolded_events_max": (
        lambda http: an_apply_before(http, "few", 2),
        [lambda http: an_apply_before(http, "many", 3)],
    ),
    "sequence_bytes_max": (
        lambda http: http.post("/es/sq/events", json=encoded(700)),
        [lambda http: http.post("/es/sq2/events", json=encoded(1000)), at_a_past_time],
    ),
}


@pytest.mark.parametrize("limit", BOTH_SIDES)
def test_each_limit_is_answered_as_the_table_says(limited, limit):
    keeps, passes = BOTH_SIDES[limit]
    found = keeps(limited)
    assert found.is_success, found.text
    told = re.findall(r"(\d{3})(?:: | `([a-z-]+)`)", dict(rows("rest.md", "Limits"))[f"`{limit}`"])
    assert len(told) == len(passes)
    for (status, code), ask in zip(told, passes, strict=True):
        found = ask(limited)
        assert found.status_code == int(status), found.text
        if code:
            assert found.json()["code"] == code
            assert found.json().get("limit", SMALL[limit]) == SMALL[limit]
        else:
            assert found.json()["cursor"] is not None


def test_the_table_of_limits_has_them_all():
    told = [codes(row[0])[0] for row in rows("rest.md", "Limits")]
    assert told == list(Limits.model_fields)
    # Those of connections and of requests together are passed in tests/service/test_limits.py, those of tokens in
    # tests/service/api/test_access.py.
    of_tokens = {"requests_per_second_max", "failed_authentications_per_minute_max"}
    together = set(told[told.index("header_bytes_max") :])
    assert set(told) - BOTH_SIDES.keys() - together - of_tokens == {"write_id_retention_seconds"}


# --- sdk.md --------------------------------------------------------------------------------------------------

ADDRESS = "http://127.0.0.1:8000"


def shown(source: str) -> dict[int, str]:
    """What the comment at the end of each line says."""
    found = enumerate((line.rpartition("  # ") for line in source.splitlines()), 1)
    return {number: comment for number, (code, mark, comment) in found if mark and code.strip()}


def matches(found: str, told: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, told.split("…"))), found, re.DOTALL) is not None


def run(source: str, names: dict[str, Any]) -> None:
    """Run a script statement by statement. An expression shows its value, or what it prints, as its comment says."""
    comments = shown(source)
    told: list[str] = []
    for statement in ast.parse(source).body:
        code = ast.unparse(statement)
        lines = {node.end_lineno for node in ast.walk(statement) if isinstance(node, ast.Expr)}
        if comments.get(statement.end_lineno, "").startswith("raises "):
            lines.add(statement.end_lineno)
        told += [comments[line] for line in sorted(lines) if line in comments]
        value = None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                if isinstance(statement, ast.Expr):
                    value = eval(compile(ast.Expression(statement.value), code, "eval"), names)
                else:
                    exec(compile(ast.Module([statement], []), code, "exec"), names)
            except Exception as error:
                found = ["raises " + "".join(traceback.format_exception_only(error)).strip()]
                found[0] = re.sub(r"raises [\w.]+\.(?=\w+(:|$))", "raises ", found[0])
            else:
                found = printed.getvalue().splitlines() + ([repr(value)] if value is not None else [])
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue  # What it prints is seen when it is called.
        if told or (found and found[0].startswith("raises ")):
            assert len(found) == len(told), f"{code}\ngives {found}"
            for one, said in zip(found, told, strict=True):
                assert matches(one, said), f"{code}\ngives {one}\ntold  {said}"
        told = []
    assert not told


# What a script with the original library would have written; see docs/sdk.md.
EXPORTED = {
    "pairs": {"some_key": {"a": (1, 2)}},
    "series": {"some_series": [(1, 1.5), (2, "x")]},
    "sequences": {"some_dict": [(1000, "item", operator.setitem, 1), (2000, "item", operator.add, 1)]},
}


@pytest.fixture
def sdk_examples(serve, tmp_path, monkeypatch) -> str:
    for name in ("RSTORE_KEY", "RSTORE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    token = secrets.token_hex(16)
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_ADMIN_TOKEN": token}).url
    monkeypatch.setenv("RSTORE_URL", server)
    monkeypatch.setenv("RSTORE_TOKEN", token)
    # A plain request of the page is one to an open store; this one is closed for the examples of tokens.
    for method in ("get", "put"):
        with_token = functools.partial(getattr(httpx2, method), headers={"Authorization": f"Bearer {token}"})
        monkeypatch.setattr(httpx2, method, with_token)
    monkeypatch.chdir(tmp_path)
    Path("exported.pickle").write_bytes(pickle.dumps(EXPORTED))
    return "\n".join(blocks("sdk.md", "python")).replace(ADDRESS, server)


def test_the_examples_of_the_sdk_show_what_is(sdk_examples, monkeypatch):
    # A class can be pickled only if its module can be found.
    module = types.ModuleType("examples")
    monkeypatch.setitem(sys.modules, "examples", module)
    names = vars(module)
    try:
        run(sdk_examples, names)
    finally:
        for value in names.values():
            if isinstance(value, Store):
                value.close()
    assert len(shown(sdk_examples)) > 60


def public(kind: type) -> dict[str, Any]:
    return {name: member for name in dir(kind) if not name.startswith("_") and callable(member := getattr(kind, name))}


def signature(name: str, function: Any) -> str:
    """A method's signature without ``self`` and types."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{name}{inspect.Signature(bare)}".replace("rstore.KEEP", "KEEP")


def test_every_method_of_the_sdk_is_told_with_its_signature_and_shown(sdk_examples):
    told = {
        code
        for title in (
            "Opening a store",
            "Key/value",
            "Time series",
            "Event sequences",
            "Sealing",
            "Namespaces",
            "Tokens",
        )
        for row in rows("sdk.md", title)
        for code in codes(row[0])
    }
    called = set(re.findall(r"\.(\w+)\(", sdk_examples))
    for name, method in public(Store).items():
        assert signature(name, method) in told, signature(name, method)
        assert name in called, name
    assert public(Store).keys() == public(AsyncStore).keys()


def test_every_argument_of_a_store_is_told_with_its_default():
    parameters = list(inspect.signature(Store.__init__).parameters.values())[1:]
    told = [(codes(row[0])[0], codes(row[1])[0]) for row in rows("sdk.md", "Arguments")]
    assert told == [(parameter.name, repr(parameter.default)) for parameter in parameters]


def test_the_tree_of_exceptions_in_the_sdk_is_that_of_the_module():
    drawn = re.search(r"^    Exception\n(?:    .*\n)+", rstore.core.errors.__doc__, re.MULTILINE)[0]
    assert textwrap.dedent(drawn) in page("sdk.md")


# --- recipes.md and javascript.md ---------------------------------------------------------------------------


@pytest.fixture
def recipes(server, tmp_path, monkeypatch) -> str:
    """The address of a service that the recipes in Python use too, from an empty folder."""
    for name in ("RSTORE_KEY", "RSTORE_NAMESPACE", "RSTORE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RSTORE_URL", server)
    monkeypatch.chdir(tmp_path)
    return server


def test_the_recipes_in_python_show_what_is_however_often_they_are_pasted(recipes):
    source = "\n".join(blocks("recipes.md", "python"))
    assert len(shown(source)) > 10
    for _ in range(2):
        names: dict[str, Any] = {}
        try:
            run(source, names)
        finally:
            names["store"].close()


def test_the_recipes_in_curl_show_what_is_however_often_they_are_pasted(recipes, tmp_path):
    before = set(tmp_path.iterdir())
    sessions = blocks("recipes.md", "sh")
    assert sessions
    for session in sessions * 2:
        source = session.replace(ADDRESS, recipes)
        done = subprocess.run(["bash", "-eu", "-c", source], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.replace("\n", "") == "".join(re.findall(r"^# (.*)$", session, flags=re.MULTILINE))
        assert set(tmp_path.iterdir()) == before


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_program_in_javascript_prints_what_it_shows_however_often_it_runs(server, tmp_path):
    source = "\n".join(blocks("javascript.md", "js"))
    program = tmp_path / "page.mjs"
    program.write_text(source.replace(ADDRESS, server))
    printed = re.findall(r"console\.log\(.*\);  ?// (.*)$", source, flags=re.MULTILINE)
    # The last one is in a loop of three rounds.
    printed += printed[-1:] * 2
    assert len(printed) > 8
    for _ in range(2):
        done = subprocess.run(["node", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == printed


# --- security.md ---------------------------------------------------------------------------------------------


def test_every_type_that_a_pickle_may_make_is_told():
    told = {code for row in rows("security.md", "Pickles") for code in codes(row[1])}
    allowed = {name if module == "builtins" else f"{module}.{name}" for module, name in GLOBALS}
    allowed = {name for name in allowed if not name.startswith("pathlib._local.")}
    # What a pickle writes without naming a type, and what is a type's one instance.
    written = {"None", "bool", "int", "float", "str", "bytes", "bytearray", "list", "tuple", "dict", "set", "frozenset"}
    assert told == allowed | written


@pytest.mark.parametrize("harmful", [eval, exec, getattr, open, operator.attrgetter("__class__"), type])
def test_what_is_not_told_is_refused(harmful):
    with pytest.raises(StoreEncodingError, match="not among the harmless types"):
        loads(pickle.dumps(harmful), trusted=False)
    with pytest.raises(StoreEncodingError, match="only harmless types are"):
        dumps(harmful)


def test_what_sealing_does_not_promise_is_so(http, server):
    """docs/security.md says what a hostile service could still do. If one of these fails, the page understates."""
    with Store(server, "honest", generate_key(), frozen=False) as store:
        store["pin"] = 1
        older = http.get("/ns/honest/kv/pin")
        store["pin"] = 2
        http.put("/ns/honest/kv/pin", content=older.content, headers={"Content-Type": older.headers["content-type"]})
        assert store["pin"] == 1  # an older value of the same place

        store.extend("s", (1, "a"), (2, "b"))
        http.delete("/ns/honest/ts/s/range?start=2")
        assert store.range("s") == [(1, "a")]  # withheld

        store.apply("e", {"balance": 5, "open": True}, t=1)
        store.apply("e", {"balance": (operator.neg,)}, t=2)
        assert store.apply("e", {"balance": (operator.mul, 2)}, t=3) == {"balance": -10, "open": True}
        sealed = http.get("/ns/honest/es/e/events").json()["events"]

        def serve_only(*timestamps):
            http.delete("/ns/honest/es/e/events")
            for t in timestamps:
                of_t = [event for event in sealed if event["timestamp"] == t]
                parts = [{name: event[name] for name in ("item", "op", "value", "encoding")} for event in of_t]
                assert http.post("/ns/honest/es/e/events", json={"events": parts, "timestamp": t}).is_success

        serve_only(1)
        assert store.current("e") == {"balance": 5, "open": True}  # rolled back
        serve_only(1, 3)
        assert store.current("e") == {"balance": 10, "open": True}  # left out
        forged = {"item": "open", "op": "delitem", "value": "", "encoding": "sealed"}
        assert http.post("/ns/honest/es/e/events", json={"events": [forged], "timestamp": 4}).is_success
        assert store.current("e") == {"balance": 10}  # an item withheld from the state
