"""The routes of namespaces."""

from __future__ import annotations

import msgspec
import pytest

pytestmark = pytest.mark.anyio

EMPTY = {"kv": 0, "ts": 0, "es": 0}


async def test_a_namespace_from_birth_to_end(http):
    assert (await http.get("/ns/a")).json()["code"] == "namespace-not-found"
    created = await http.put("/ns/a")
    assert (created.status_code, created.json()) == (201, {"namespace": "a", "sealed_only": False, **EMPTY})
    assert (await http.put("/ns/a")).status_code == 200
    await http.put("/ns/a/kv/k", json=1)
    await http.post("/ns/a/ts/s/range", json={"points": [[1, 2]]})
    await http.post("/ns/a/es/e/events", json={"events": [{"item": "x", "value": 1}]})
    assert (await http.get("/ns/a")).json() == {"namespace": "a", "sealed_only": False, "kv": 1, "ts": 1, "es": 1}
    assert (await http.delete("/ns/a")).status_code == 204
    assert (await http.delete("/ns/a")).status_code == 204
    assert (await http.get("/ns/a")).status_code == 404
    assert (await http.get("/ns/a/kv/k")).status_code == 404


async def test_a_policy_is_set_stays_and_is_lifted(http):
    assert (await http.put("/ns/a", json={"sealed_only": True})).json()["sealed_only"] is True
    assert (await http.put("/ns/a")).json()["sealed_only"] is True
    assert (await http.put("/ns/a", content=b"", headers={"Content-Type": "application/json"})).status_code == 200
    assert (await http.put("/ns/a/kv/k", json=1)).json()["code"] == "sealed-only"
    sealed = {"Content-Type": "application/vnd.rstore.sealed"}
    assert (await http.put("/ns/a/kv/k", content=b"x", headers=sealed)).status_code == 201
    body = msgspec.msgpack.encode({"sealed_only": False})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    lifted = await http.put("/ns/a", content=body, headers=headers)
    assert msgspec.msgpack.decode(lifted.content) == {"namespace": "a", "sealed_only": False, "kv": 1, "ts": 0, "es": 0}
    assert (await http.put("/ns/a/kv/k", json=1)).status_code == 204


@pytest.mark.parametrize("body", [b"{}", b'{"sealed_only": 1}', b'{"sealed_only": true, "x": 1}', b"[]", b"null"])
async def test_a_policy_that_is_none(http, body):
    await http.put("/ns/a", json={"sealed_only": True})
    answer = await http.put("/ns/a", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["code"] == "invalid-body"
    assert (await http.get("/ns/a")).json()["sealed_only"] is True


async def test_a_chunked_body_that_is_empty_is_not_a_body(http):
    async def nothing():
        yield b""

    assert (await http.put("/ns/a", content=nothing())).status_code == 201


async def test_listing_namespaces(http):
    for name in ("b", "a", "team-1", "team-2", "."):
        await http.put(f"/ns/{name.replace('.', '%2E')}")
    assert [item["namespace"] for item in (await http.get("/ns")).json()["items"]] == [
        ".",
        "a",
        "b",
        "team-1",
        "team-2",
    ]
    page = (await http.get("/ns?match=team-*&limit=1")).json()
    assert page["items"] == [{"namespace": "team-1", "sealed_only": False}]
    rest = (await http.get("/ns", params={"match": "team-*", "cursor": page["cursor"]})).json()
    assert ([item["namespace"] for item in rest["items"]], rest["cursor"]) == (["team-2"], None)
