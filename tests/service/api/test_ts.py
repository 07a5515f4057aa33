"""The routes of time series: five forms, streamed."""

from __future__ import annotations

import functools
import json
import re

import msgspec
import pytest

from rstore.core.encodings import Encoding, Value
from rstore.core.frames import FrameReader, encode
from rstore.core.points import Points
from rstored.limits import Limits

pytestmark = pytest.mark.anyio

JSON = "application/json"
MSGPACK = "application/msgpack"
NDJSON = "application/x-ndjson"
CSV = "text/csv"
FRAMES = "application/vnd.rstore.points"
LOW, HIGH = -(2**63), 2**63 - 1

POINTS = [(LOW, 1.5), (-1, None), (0, 'a,b\n"c"'), (1, {"x": [2**70]}), (HIGH, -0.0)]
BODIES = {
    JSON: json.dumps({"points": POINTS}).encode(),
    MSGPACK: msgspec.msgpack.encode(
        {"points": [*POINTS[:3], (1, json.dumps(POINTS[3][1]).encode(), "json"), POINTS[4]]}
    ),
    NDJSON: b"".join(json.dumps(point).encode() + b"\n" for point in POINTS),
    CSV: b"timestamp,value,encoding\r\n"
    + b"".join(b'%d,"%b",\r\n' % (t, json.dumps(value).encode().replace(b'"', b'""')) for t, value in POINTS),
}


@pytest.fixture
def limits():
    return Limits(answer_points_max=50, body_bytes_max=2_000_000, value_bytes_max=1_000_000)


async def points_of(answer):
    assert answer.status_code == 200, answer.text
    return [tuple(point) for point in answer.json()["points"]]


@pytest.mark.parametrize("form", BODIES)
async def test_points_arrive_in_each_form_and_leave_in_each(http, form):
    sent = await http.post("/ts/s/range", content=BODIES[form], headers={"Content-Type": form})
    assert sent.json() == {"points": 5}
    assert await points_of(await http.get("/ts/s/range")) == POINTS
    packed = await http.get("/ts/s/range", headers={"Accept": MSGPACK})
    assert packed.headers["content-type"] == MSGPACK
    rows = msgspec.msgpack.decode(packed.content)["points"]
    assert rows[:3] == [list(point) for point in POINTS[:3]]
    assert rows[3][2] == "json"
    assert json.loads(rows[3][1]) == POINTS[3][1]
    lines = await http.get("/ts/s/range", headers={"Accept": NDJSON})
    assert [tuple(json.loads(line)) for line in lines.text.splitlines()] == POINTS
    table = await http.get("/ts/s/range", headers={"Accept": CSV})
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert table.headers["x-content-type-options"] == "nosniff"
    assert table.text.startswith("timestamp,value,encoding\r\n")
    frames = await http.get("/ts/s/range", headers={"Accept": FRAMES})
    reader = FrameReader()
    found = [point for points in reader.feed(frames.content) for point in points]
    reader.finish()
    assert [t for t, _ in found] == [t for t, _ in POINTS]
    # What left as frames or as a table may come back as it is.
    for back in (frames, table, lines, packed):
        await http.delete("/ts/s/range")
        headers = {"Content-Type": back.headers["content-type"]}
        assert (await http.post("/ts/s/range", content=back.content, headers=headers)).json() == {"points": 5}
        assert await points_of(await http.get("/ts/s/range")) == POINTS


WRONG = {
    "1e-400": "invalid-value",
    "1e400": "invalid-value",
    "[NaN]": "invalid-value",
    '"\\ud800"': "invalid-value",
    "[" * 200 + "]" * 200: "nesting-too-deep",
    '"' + "x" * 1_100_000 + '"': "value-too-large",
}


def in_each_form(rows: list[tuple[int, str]]) -> dict[str, bytes]:
    """Bodies of these timestamps and JSON texts; frames of the last row, and of those before it."""
    quoted = functools.partial(re.sub, '"', '""')
    packed = {"points": [[t, text.encode(), "json"] for t, text in rows]}
    cells = [[(t, Value(Encoding.JSON, text.encode())) for t, text in part] for part in (rows[:-1], rows[-1:])]
    return {
        JSON: ('{"points": [' + ", ".join(f"[{t}, {text}]" for t, text in rows) + "]}").encode(),
        NDJSON: "".join(f"[{t}, {text}]\n" for t, text in rows).encode(),
        CSV: ("timestamp,value\n" + "".join(f'{t},"{quoted(text)}"\n' for t, text in rows)).encode(),
        MSGPACK: msgspec.msgpack.encode(packed),
        FRAMES: b"".join(encode(Points.from_values(part)) for part in cells),
    }


@pytest.mark.parametrize("rows_between", [0, 30_000])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda text: text[:10])
async def test_every_point_of_a_body_is_checked_whatever_comes_after_it(http, wrong, rows_between):
    """Of two points with one timestamp the last is stored, and the first is looked at too."""
    rows = [(1, wrong), *((t, '"x"') for t in range(2, rows_between + 2)), (1, "1")]
    for form, body in in_each_form(rows).items():
        sent = await http.post("/ts/s/range", content=body, headers={"Content-Type": form})
        assert sent.status_code >= 400, form
        assert sent.json()["code"] in {WRONG[wrong], *(["malformed-body"] if form in (JSON, NDJSON) else [])}, form
        assert (await http.get("/ts/s/range")).json() == {"points": []}


@pytest.mark.parametrize("form", [JSON, NDJSON, CSV, MSGPACK, FRAMES])
async def test_every_point_of_a_body_is_sealed_where_nothing_else_is_taken(http, form):
    await http.put("/ns/n", json={"sealed_only": True})
    body = {
        JSON: b'{"points": [[1, 1], [1, "YQ==", "sealed"]]}',
        NDJSON: b'[1, 1]\n[1, "YQ==", "sealed"]\n',
        CSV: b"timestamp,value,encoding\n1,1,\n1,YQ==,sealed\n",
        MSGPACK: msgspec.msgpack.encode({"points": [[1, 1], [1, b"a", "sealed"]]}),
        FRAMES: encode(Points.from_pairs([(1, 1)])) + encode(Points.from_values([(1, Value(Encoding.SEALED, b"a"))])),
    }[form]
    sent = await http.post("/ns/n/ts/s/range", content=body, headers={"Content-Type": form})
    assert (sent.status_code, sent.json()["code"]) == (422, "sealed-only")


NUMBERS = {
    "12345678901234567.25": 1.2345678901234568e16,
    "1e-400": None,
    "-1e-400": None,
    "1e400": None,
    "5e-324": 5e-324,
    "0e-400": 0.0,
    "123456789012345678901234567890": 123456789012345678901234567890,
    "-9223372036854775809": -9223372036854775809,
    "1" * 4301: None,
    "1.50": 1.5,
}


@pytest.mark.parametrize("beside", ["0.0", "null", '{"a": 1.50}'])
@pytest.mark.parametrize("literal", NUMBERS, ids=lambda text: text[:25])
async def test_the_digits_of_a_number_are_those_of_an_int_or_a_double_in_every_form(http, literal, beside):
    table = "timestamp,value\n1,%s\n2,%s\n"
    bodies = {
        JSON: f'{{"points": [[1, {literal}], [2, {beside}]]}}'.encode(),
        NDJSON: f"[1, {literal}]\n[2, {beside}]\n".encode(),
        CSV: (table % (literal, '"' + beside.replace('"', '""') + '"' if '"' in beside else beside)).encode(),
        MSGPACK: msgspec.msgpack.encode({"points": [[1, literal.encode(), "json"], [2, beside.encode(), "json"]]}),
        FRAMES: encode(
            Points.from_values((t, Value(Encoding.JSON, text.encode())) for t, text in ((1, literal), (2, beside)))
        ),
    }
    answers = set()
    for form, body in bodies.items():
        await http.delete("/ts/s/range")
        sent = await http.post("/ts/s/range", content=body, headers={"Content-Type": form})
        if NUMBERS[literal] is None:
            assert (sent.status_code, sent.json()["code"]) == (422, "invalid-value"), form
            # A frame has no rows to point at: the detail names the timestamp.
            assert sent.json().get("pointer") == (None if form == FRAMES else "/points/0"), form
            assert form != FRAMES or "timestamp 1" in sent.json()["detail"]
            assert (await http.get("/ts/s/range")).json() == {"points": []}
            continue
        assert sent.status_code == 200, (form, sent.text)
        answers.add((await http.get("/ts/s/range")).text)
        packed = msgspec.msgpack.decode((await http.get("/ts/s/range", headers={"Accept": MSGPACK})).content)
        first = packed["points"][0]
        assert repr(json.loads(first[1]) if len(first) == 3 else first[1]) == repr(NUMBERS[literal]), form
        (_, first_line, *_) = (await http.get("/ts/s/range", headers={"Accept": CSV})).text.splitlines()
        assert repr(json.loads(first_line.split(",")[1])) == repr(NUMBERS[literal]), form
        assert repr((await http.get("/ts/s/first")).json()["point"][1]) == repr(NUMBERS[literal]), form
    assert len(answers) == (NUMBERS[literal] is not None)


@pytest.mark.parametrize("form", [JSON, NDJSON, CSV])
async def test_a_number_that_would_become_0_is_found_in_a_long_body(http, form):
    rows = [f"{t},0.0" for t in range(60_000)]
    rows[50_000] = "50000,1e-400"
    bodies = {
        JSON: '{"points":[[' + "],[".join(rows) + "]]}",
        NDJSON: "".join(f"[{row}]\n" for row in rows),
        CSV: "timestamp,value\n" + "".join(f"{row}\n" for row in rows),
    }
    sent = await http.post("/ts/s/range", content=bodies[form], headers={"Content-Type": form})
    assert (sent.status_code, sent.json()["code"], sent.json()["pointer"]) == (422, "invalid-value", "/points/50000")
    assert (await http.get("/ts/s/range")).json() == {"points": []}


async def test_what_is_not_a_bare_number_keeps_its_digits(http):
    value = '{"a": [1e-400, 12345678901234567.25, 1.50]}'
    await http.post("/ts/s/range", content=f'{{"points": [[1, {value}]]}}', headers={"Content-Type": JSON})
    assert (await http.get("/ts/s/range")).text == f'{{"points":[[1,{value}]]}}'
    (row,) = msgspec.msgpack.decode((await http.get("/ts/s/range", headers={"Accept": MSGPACK})).content)["points"]
    assert row == [1, value.encode(), "json"]


async def test_frames_of_numbers(http):
    body = encode(Points.from_pairs([(t, t / 2) for t in range(1000)]))
    assert (await http.post("/ts/s/range", content=body, headers={"Content-Type": FRAMES})).json() == {"points": 1000}
    assert await points_of(await http.get("/ts/s/range?n=3")) == [(0, 0.0), (1, 0.5), (2, 1.0)]


@pytest.mark.parametrize("form", [JSON, NDJSON, CSV, FRAMES, MSGPACK])
async def test_no_points_in_each_form(http, form):
    answer = await http.get("/ts/unknown/range", headers={"Accept": form})
    assert answer.status_code == 200
    expected = {JSON: b'{"points":[]}', CSV: b"timestamp,value,encoding\r\n", MSGPACK: b"\x81\xa6points\x90"}
    assert answer.content == expected.get(form, b"")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("start=3&end=5", [3, 4, 5]),
        ("start=7", [7, 8, 9]),
        ("end=1", [0, 1]),
        ("n=2", [0, 1]),
        ("n=0", []),
        ("freq=4", [0, 4, 8]),
        ("freq=4&n=2&start=1", [1, 5]),
        ("order=desc&n=3", [9, 8, 7]),
        ("order=desc&freq=4", [9, 5, 1]),
        ("start=5&end=4", []),
        ("start=0&end=0", [0]),
        (f"start={LOW}&end={HIGH}&order=desc", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
async def test_the_parameters_of_a_range(http, query, expected):
    await http.post("/ts/s/range", json={"points": [[t, t] for t in range(10)]})
    for form in (JSON, MSGPACK, NDJSON, CSV, FRAMES):
        answer = await http.get(f"/ts/s/range?{query}", headers={"Accept": form})
        if form == JSON:
            found = [t for t, _ in answer.json()["points"]]
        elif form == MSGPACK:
            found = [t for t, _ in msgspec.msgpack.decode(answer.content)["points"]]
        elif form == NDJSON:
            found = [json.loads(line)[0] for line in answer.text.splitlines()]
        elif form == CSV:
            found = [int(line.split(",")[0]) for line in answer.text.splitlines()[1:]]
        else:
            # Within a frame the points ascend always.
            parts = list(FrameReader().feed(answer.content))
            found = [t for points in parts for t in (points.timestamps[::-1] if "desc" in query else points.timestamps)]
        assert found == expected, form


async def test_a_long_answer_is_streamed_and_msgpack_is_bounded(http):
    await http.post("/ts/s/range", json={"points": [[t, "x" * 20] for t in range(30_000)]})
    answer = await http.get("/ts/s/range")
    assert "content-length" not in answer.headers
    assert len(answer.json()["points"]) == 30_000
    lines = await http.get("/ts/s/range", headers={"Accept": NDJSON})
    assert len(lines.text.splitlines()) == 30_000
    for accept in (CSV, FRAMES):
        assert (await http.get("/ts/s/range", headers={"Accept": accept})).status_code == 200
    refused = await http.get("/ts/s/range?n=51", headers={"Accept": MSGPACK})
    assert (refused.json()["code"], refused.json()["limit"]) == ("answer-too-large", 50)
    assert (await http.get("/ts/s/range?n=50", headers={"Accept": MSGPACK})).status_code == 200


async def test_a_msgpack_answer_is_bounded_in_bytes_too(http, app):
    for t in range(3):
        await http.post("/ts/big/range", json={"points": [[t, "x" * 900_000]]})
    packed = await http.get("/ts/big/range?n=2", headers={"Accept": MSGPACK})
    assert [t for t, _ in msgspec.msgpack.decode(packed.content)["points"]] == [0, 1]
    refused = await http.get("/ts/big/range", headers={"Accept": MSGPACK})
    assert (refused.json()["code"], refused.json()["limit"]) == ("answer-too-large", 2_000_000)
    assert len((await http.get("/ts/big/range")).json()["points"]) == 3


async def test_values_that_are_not_json(http):
    body = {"points": [[1, "3q2+7w==", "sealed"], [2, 5], [3, "AA==", "bytes"], [4, "x", "json"]]}
    await http.post("/ts/s/range", json=body)
    expected = [[1, "3q2+7w==", "sealed"], [2, 5], [3, "AA==", "bytes"], [4, "x"]]
    assert (await http.get("/ts/s/range")).json() == {"points": expected}
    assert (await http.get("/ts/s/first")).json() == {"point": expected[0]}
    packed = await http.get("/ts/s/first", headers={"Accept": MSGPACK})
    assert msgspec.msgpack.decode(packed.content) == {"point": [1, b"\xde\xad\xbe\xef", "sealed"]}
    assert "3q2+7w==,sealed" in (await http.get("/ts/s/range", headers={"Accept": CSV})).text


async def test_ends_grid_removal_and_listing(http):
    assert (await http.get("/ts/s/first")).json()["code"] == "series-not-found"
    assert (await http.get("/ts/s/last")).json()["code"] == "series-not-found"
    await http.post("/ts/s/range", json={"points": [[t, t] for t in (0, 10, 20, 25, 40)]})
    assert (await http.get("/ts/s/first")).json() == {"point": [0, 0]}
    assert (await http.get("/ts/s/last")).json() == {"point": [40, 40]}
    assert (await http.get("/ts/s/missing?start=0&freq=10")).json() == {"missing": [30]}
    assert (await http.get("/ts/s/missing?start=0&freq=10&end=55")).json() == {"missing": [30, 50]}
    assert (await http.get("/ts/s/complete?start=0&freq=10&end=20")).json() == {"complete": True}
    assert (await http.get("/ts/s/complete?start=0&freq=10")).json() == {"complete": False}
    item = {"key": "s", "points": 5, "first": 0, "last": 40}
    assert (await http.get("/ts")).json() == {"items": [item], "cursor": None}
    assert (await http.delete("/ts/s/range?start=20&end=30")).json() == {"removed": 2}
    assert (await http.delete("/ts/s/range")).json() == {"removed": 3}
    assert (await http.delete("/ts/s/range")).json() == {"removed": 0}
    assert (await http.get("/ts")).json()["items"] == []


async def test_a_point_that_is_wrong_is_pointed_at_and_nothing_is_stored(http):
    for body, pointer in (
        ({"points": [[1, 1], [1.5, 1]]}, "/points/1"),
        ({"points": [[1, 1], [2, "!", "sealed"]]}, "/points/1"),
        ({"points": [[1, 1], [2**63, 1]]}, "/points/1"),
    ):
        problem = (await http.post("/ts/s/range", json=body)).json()
        assert problem["code"] in ("invalid-body", "invalid-value")
        assert problem["pointer"].startswith(pointer)
    assert (await http.get("/ts")).json()["items"] == []
