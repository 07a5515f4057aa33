"""If-Match and If-None-Match over the routes of one key."""

from __future__ import annotations

import pytest

from rstored.api.conditions import bare_condition
from rstored.engine.model import ANY, Condition
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


@pytest.fixture
async def etag(http):
    answer = await http.put("/kv/k", json=1)
    assert answer.status_code == 201
    return answer.headers["etag"]


async def test_reading_with_if_none_match(http, etag):
    for condition in (etag, f'"x", {etag}', f"W/{etag}", f'"x",{etag},"y"', "*"):
        answer = await http.get("/kv/k", headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert "content-length" not in answer.headers
        assert (await http.head("/kv/k", headers={"If-None-Match": condition})).status_code == 304
    for condition in ('"x"', 'W/"x"', '""', ""):
        answer = await http.get("/kv/k", headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (200, b"1")


async def test_several_fields_are_one_list(http, etag):
    answer = await http.get("/kv/k", headers=[("If-None-Match", '"x"'), ("If-None-Match", etag)])
    assert answer.status_code == 304


async def test_reading_with_if_match(http, etag):
    assert (await http.get("/kv/k", headers={"If-Match": f'"x", {etag}'})).status_code == 200
    answer = await http.get("/kv/k", headers={"If-Match": '"x"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition-failed")


async def test_writing_with_if_match(http, etag):
    for condition in ('"x"', f"W/{etag}", '"*"', '""'):
        answer = await http.put("/kv/k", json=2, headers={"If-Match": condition})
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition-failed"), condition
    assert (await http.put("/kv/k", json=2, headers={"If-Match": f'"x", {etag}'})).status_code == 204
    # Another writer's content may be the same, but that does not make its write this one.
    assert (await http.put("/kv/k", json=2, headers={"If-Match": etag})).status_code == 412
    assert (await http.get("/kv/k")).json() == 2


async def test_a_conditional_write_that_is_sent_again_succeeds_under_its_key(http, etag):
    again = {"If-Match": etag, "Idempotency-Key": "mine"}
    for headers, content, status in ((again, 2, 204), (again, 2, 204), (again, 3, 422)):
        assert (await http.put("/kv/k", json=content, headers=headers)).status_code == status
    assert (await http.put("/kv/k", json=2, headers=again | {"Idempotency-Key": "yours"})).status_code == 412
    assert (await http.get("/kv/k")).json() == 2


async def test_writing_only_what_is_not_there(http, etag):
    assert (await http.put("/kv/k", json=2, headers={"If-None-Match": "*"})).status_code == 412
    assert (await http.put("/kv/new", json=2, headers={"If-None-Match": "*"})).status_code == 201
    assert (await http.put("/kv/other", json=2, headers={"If-Match": "*"})).status_code == 412


async def test_deleting_with_a_condition(http, etag):
    assert (await http.delete("/kv/k", headers={"If-Match": '"x"'})).status_code == 412
    assert (await http.delete("/kv/absent", headers={"If-Match": "*"})).status_code == 412
    assert (await http.delete("/kv/k", headers={"If-Match": etag})).status_code == 204
    assert (await http.delete("/kv/k")).status_code == 204
    assert (await http.get("/kv/k")).status_code == 404


@pytest.mark.parametrize("condition", ["x", '"x', 'x"', '"a" "b"', "'x'", '*, "x"', 'w/"x"', '"é"'])
async def test_what_is_not_a_list_of_tags(http, etag, condition):
    for name in ("If-Match", "If-None-Match"):
        answer = await http.put("/kv/k", content=b"2", headers={**JSON, name: condition.encode("latin-1")})
        assert (answer.status_code, answer.json()["parameter"]) == (422, name)
    assert (await http.get("/kv/k")).json() == 1


def test_conditions_in_a_body_are_bare():
    assert bare_condition("abc", None) == Condition(("abc",), None)
    assert bare_condition(None, "*") == Condition(None, ("*",))
    assert bare_condition(None, None) is ANY
    for tag in ('"abc"', "", "a b", "é"):
        with pytest.raises(Problem) as caught:
            bare_condition(tag, None)
        assert caught.value.members == {"pointer": "/if_match"}
