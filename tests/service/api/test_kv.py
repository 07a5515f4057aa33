"""The routes of key/value pairs."""

from __future__ import annotations

import time

import anyio
import msgspec
import pytest

pytestmark = pytest.mark.anyio

MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (None, "application/octet-stream"),
        ("image/png", "image/png"),
        ("text/plain; charset=latin-1", "text/plain; charset=latin-1"),
        ("Text/HTML", "Text/HTML"),
        ("application/vnd.rstore.sealed", "application/vnd.rstore.sealed"),
        ("application/vnd.rstore.pickle; x=y", "application/vnd.rstore.pickle"),
        ("application/json", "application/json"),
        ("Application/JSON; charset=UTF-8", "application/json"),
    ],
)
async def test_a_value_keeps_its_bytes_and_its_media_type(http, sent, kept):
    body = b'{"a": [1.0, 2e5]} '
    put = await http.put("/kv/k", content=body, headers={"Content-Type": sent} if sent else {})
    assert put.status_code == 201
    get = await http.get("/kv/k", headers={"Accept": "text/html"})
    assert (get.status_code, get.content, get.headers["content-type"]) == (200, body, kept)
    assert get.headers["x-content-type-options"] == "nosniff"
    assert get.headers["content-security-policy"] == "sandbox"
    assert get.headers["etag"] == put.headers["etag"]
    again = await http.put("/kv/k", content=body, headers={"Content-Type": sent} if sent else {})
    assert (again.status_code, again.headers["etag"]) == (204, put.headers["etag"])
    other = await http.put("/kv/k", content=body, headers={"Content-Type": "x/y"})
    assert other.headers["etag"] != put.headers["etag"]


DIGITS = b'{"a": [1e-400, 12345678901234567.25, 1.50, 123456789012345678901234567890]}'


@pytest.mark.parametrize("body", [DIGITS, b"1e-400", b"12345678901234567.25", b" 1.50 "])
async def test_a_value_keeps_its_digits(http, body):
    assert (await http.put("/kv/k", content=body, headers={"Content-Type": "application/json"})).is_success
    assert (await http.get("/kv/k")).content == body
    assert body.strip() in (await http.get("/kv?values=true")).content
    batch = b'{"set": [{"key": "other", "value": %b}], "get": ["k"]}' % body
    assert body.strip() in (await http.post("/kv", content=batch, headers={"Content-Type": "application/json"})).content
    assert (await http.get("/kv/other")).content == body.strip()
    refused = await http.put("/kv/k", content=b"[1e400]", headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-value")


async def test_no_number_becomes_0_in_msgpack(http):
    await http.put("/kv/k", content=DIGITS, headers={"Content-Type": "application/json"})
    await http.put("/kv/n", content=b"[12345678901234567.25]", headers={"Content-Type": "application/json"})
    items = msgspec.msgpack.decode((await http.get("/kv?values=true", headers=MSGPACK)).content)["items"]
    assert [(item["value"], item.get("encoding")) for item in items] == [
        (DIGITS, "json"),
        ([1.2345678901234568e16], None),
    ]


async def test_an_empty_value(http):
    assert (await http.put("/kv/k", content=b"", headers={"Content-Type": "text/plain"})).status_code == 201
    get = await http.get("/kv/k")
    assert (get.status_code, get.content, get.headers["content-length"]) == (200, b"", "0")
    refused = await http.put("/kv/k", content=b"", headers={"Content-Type": "application/json"})
    assert refused.json()["code"] == "invalid-value"


async def test_a_key_expires(http):
    before_ms = int(time.time() * 1000)
    await http.put("/kv/k?ttl=60", json=1)
    after_ms = time.time() * 1000
    expires = int((await http.get("/kv/k")).headers["rstore-expires"])
    assert before_ms + 60_000 <= expires <= after_ms + 60_000
    await http.put("/kv/k", json=2)
    assert int((await http.get("/kv/k")).headers["rstore-expires"]) == expires
    await http.put("/kv/k?ttl=never", json=3)
    assert "rstore-expires" not in (await http.get("/kv/k")).headers
    await http.put("/kv/k?ttl=0.001", json=4)
    await anyio.sleep(0.01)
    assert (await http.get("/kv/k")).status_code == 404


async def test_pages_of_keys(http):
    for number in range(25):
        await http.put(f"/kv/k{number:02}", json=number)
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = (await http.get("/kv", params={"limit": "10", **({"cursor": cursor} if cursor else {})})).json()
        found += [item["key"] for item in page["items"]]
        cursor, pages = page["cursor"], pages + 1
    assert found == [f"k{number:02}" for number in range(25)]
    assert pages == 3
    matching = (await http.get("/kv?match=k?5&prefix=k0")).json()
    assert [item["key"] for item in matching["items"]] == ["k05"]
    assert "value" not in matching["items"][0]


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_a_listing_with_values(http, accept):
    await http.put("/kv/a", content=b'{"x": 36893488147419103232}', headers={"Content-Type": "application/json"})
    await http.put("/kv/b", content=b"\0\xff", headers={"Content-Type": "image/png"})
    await http.put("/kv/c?ttl=100", json=[1, None])
    answer = await http.get("/kv?values=true", headers={"Accept": accept})
    assert answer.headers["content-type"] == accept
    if accept == "application/json":
        a, b, c = answer.json()["items"]
        assert a["value"] == {"x": 2**65}
        assert (b["value"], b["encoding"], b["media_type"]) == ("AP8=", "bytes", "image/png")
    else:
        a, b, c = msgspec.msgpack.decode(answer.content)["items"]
        assert (a["value"], a["encoding"]) == (b'{"x": 36893488147419103232}', "json")
        assert (b["value"], b["encoding"]) == (b"\0\xff", "bytes")
    assert c["value"] == [1, None]
    assert "encoding" not in c
    assert isinstance(c["expires"], int)
    assert a["expires"] is None
    assert f'"{c["etag"]}"' == (await http.get("/kv/c")).headers["etag"]


async def test_a_batch_in_json(http):
    await http.put("/kv/old", json="was")
    etag = (await http.get("/kv/old")).headers["etag"].strip('"')
    body = {
        "get": ["old", "absent", "new"],
        "set": [
            {"key": "old", "value": {"is": 1}, "if_match": etag},
            {"key": "new", "value": "AP8=", "encoding": "bytes", "media_type": "image/png", "ttl": 60},
            {"key": "sealed", "value": "AAEC", "encoding": "sealed", "if_none_match": "*"},
        ],
        "delete": ["absent", {"key": "gone", "if_match": "*"}],
    }
    refused = await http.post("/kv", json=body)
    assert (refused.status_code, refused.json()["pointer"]) == (412, "/delete/1")
    assert (await http.get("/kv/old")).json() == "was"
    body["delete"] = ["absent"]
    answer = (await http.post("/kv", json=body)).json()
    assert [(item["key"], item["value"]) for item in answer["get"]] == [("old", "was")]
    assert [(item["key"], item["created"]) for item in answer["set"]] == [
        ("old", False),
        ("new", True),
        ("sealed", True),
    ]
    assert answer["delete"] == []
    new = await http.get("/kv/new")
    assert (new.content, new.headers["content-type"]) == (b"\0\xff", "image/png")
    assert "rstore-expires" in new.headers
    assert (await http.get("/kv/sealed")).headers["content-type"] == "application/vnd.rstore.sealed"
    assert (await http.post("/kv", json={"delete": ["new", "nothing"]})).json()["delete"] == ["new"]
    assert (await http.post("/kv", json={})).json() == {"get": [], "set": [], "delete": []}


async def test_a_batch_in_msgpack(http):
    body = {
        "set": [
            {"key": "a", "value": {"x": [1, 2.5, "ü", None, True]}},
            {"key": "b", "value": b"\0\xff", "encoding": "bytes"},
            {"key": "c", "value": b"[36893488147419103232]", "encoding": "json"},
            {"key": "d", "value": -5, "encoding": "json"},
        ]
    }
    answer = await http.post("/kv", content=msgspec.msgpack.encode(body), headers=MSGPACK)
    assert [item["created"] for item in msgspec.msgpack.decode(answer.content)["set"]] == [True] * 4
    assert (await http.get("/kv/a")).json() == {"x": [1, 2.5, "ü", None, True]}
    assert (await http.get("/kv/b")).content == b"\0\xff"
    assert (await http.get("/kv/c")).json() == [2**65]
    assert (await http.get("/kv/d")).json() == -5
    got = await http.post("/kv", content=msgspec.msgpack.encode({"get": ["c", "b"]}), headers=MSGPACK)
    assert [item["value"] for item in msgspec.msgpack.decode(got.content)["get"]] == [
        b"[36893488147419103232]",
        b"\0\xff",
    ]


@pytest.mark.parametrize(
    ("part", "code", "pointer"),
    [
        ({"key": "k", "value": 1, "colour": 1}, "invalid-body", "/set/1"),
        ({"key": "k"}, "invalid-body", "/set/1"),
        ({"key": 5, "value": 1}, "invalid-body", "/set/1/key"),
        ({"key": "", "value": 1}, "invalid-key", "/set/1/key"),
        ({"key": "k", "value": 1, "encoding": "rot13"}, "invalid-body", "/set/1/encoding"),
        ({"key": "k", "value": "!", "encoding": "sealed"}, "invalid-value", "/set/1/value"),
        ({"key": "k", "value": 1, "media_type": "image/png"}, "invalid-body", "/set/1/media_type"),
        ({"key": "k", "value": "AA==", "encoding": "bytes", "media_type": "x"}, "invalid-body", "/set/1/media_type"),
        (
            {"key": "k", "value": "AA==", "encoding": "bytes", "media_type": "a/b\r\nX: y"},
            "invalid-body",
            "/set/1/media_type",
        ),
        ({"key": "k", "value": 1, "ttl": 0}, "invalid-body", "/set/1/ttl"),
        ({"key": "k", "value": 1, "ttl": "soon"}, "invalid-body", "/set/1/ttl"),
        ({"key": "k", "value": 1, "if_match": '"x"'}, "invalid-body", "/set/1/if_match"),
        ({"key": "a", "value": 1}, "invalid-body", "/set/1"),
    ],
)
async def test_a_part_that_is_wrong_is_pointed_at_and_nothing_is_done(http, part, code, pointer):
    answer = await http.post("/kv", json={"set": [{"key": "a", "value": 1}, part]})
    problem = answer.json()
    assert (problem["code"], problem["pointer"]) == (code, pointer)
    assert (await http.get("/kv")).json()["items"] == []
