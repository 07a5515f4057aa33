"""The routes of event sequences."""

from __future__ import annotations

import json

import msgspec
import pytest

from rstored.limits import Limits

pytestmark = pytest.mark.anyio

MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def limits():
    return Limits(answer_points_max=20)


async def apply(http, events, *, headers=None, **members):
    return await http.post("/es/e/events", json={"events": events, **members}, headers=headers)


async def test_a_sequence_from_birth_to_end(http):
    assert (await http.get("/es/e/current")).json()["code"] == "sequence-not-found"
    assert (await http.get("/es/e/events")).json()["code"] == "sequence-not-found"
    first = await apply(http, [{"item": "n", "value": 5}, {"item": "t", "op": "setitem", "value": "a"}], timestamp=10)
    state = {"timestamp": 10, "revision": 1, "state": {"n": 5, "t": "a"}, "events": []}
    assert first.json() == state
    second = await apply(http, [{"item": "n", "op": "add", "value": 2}, {"item": "t", "op": "delitem"}], timestamp=20)
    assert second.json()["state"] == {"n": 7}
    assert (await http.get("/es/e/current")).json() == second.json()
    past = (await http.get("/es/e/past?t=19")).json()
    assert (past["timestamp"], past["state"], past["events"]) == (10, state["state"], [])
    assert (await http.get("/es/e/past?t=9")).json()["code"] == "sequence-not-found"
    assert (await http.get("/es")).json()["items"] == [{"key": "e", "events": 4, "revision": 2, "last": 20, "items": 1}]
    events = (await http.get("/es/e/events")).json()["events"]
    assert events == [
        {"timestamp": 10, "item": "n", "op": "setitem", "value": 5},
        {"timestamp": 10, "item": "t", "op": "setitem", "value": "a"},
        {"timestamp": 20, "item": "n", "op": "add", "value": 2},
        {"timestamp": 20, "item": "t", "op": "delitem", "value": None},
    ]
    assert (await http.get("/es/e/events?ops=add,delitem&n=1")).json()["events"] == events[2:3]
    assert (await http.get("/es/e/events?item=t&start=11")).json()["events"] == events[3:]
    assert (await http.get("/es/e/events?ops=")).json()["events"] == []
    lines = await http.get("/es/e/events", headers=NDJSON)
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == events
    assert (await http.post("/es/e/prune")).json() == {"pruned": 2, "removed": False}
    assert (await http.delete("/es/e/events")).json() == {"removed": 2}
    assert (await http.delete("/es/e/events")).json() == {"removed": 0}


async def post_text(http, events, timestamp):
    body = f'{{"timestamp": {timestamp}, "events": [{events}]}}'
    return await http.post("/es/e/events", content=body, headers={"Content-Type": "application/json"})


async def test_a_value_keeps_its_digits_until_an_operator_computes_with_it(http):
    texts = ["12345678901234567.25", "1e-400", "[1e-400, 1.50]"]
    events = ", ".join(f'{{"item": "i{number}", "value": {text}}}' for number, text in enumerate(texts))
    state = (await post_text(http, events, 1)).text
    for answer in (state, (await http.get("/es/e/current")).text, (await http.get("/es/e/events")).text):
        assert [text for text in texts if text not in answer] == []
    packed = msgspec.msgpack.decode((await http.get("/es/e/current", headers=MSGPACK)).content)["state"]
    assert packed == {"i0": 1.2345678901234568e16, "i1": texts[1].encode(), "i2": texts[2].encode()}
    added = (await post_text(http, '{"item": "i0", "op": "add", "value": 0.0}', 2)).json()
    assert added["state"]["i0"] == 1.2345678901234568e16
    for number, event in enumerate(
        (
            '{"item": "i0", "op": "mul", "value": -1e-400}',
            '{"item": "i1", "op": "mul", "value": 1e300}',
            '{"item": "i2", "op": "concat", "value": [1]}',
        )
    ):
        refused = await post_text(http, event, 3)
        assert (refused.status_code, refused.json()["code"]) == (409, "unfoldable-event"), number
        assert "nearer to 0" in refused.json()["detail"]
    refused = await post_text(http, '{"item": "i0", "value": 1e400}', 3)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-value")
    # So is an event of the past by which a later one could not be computed any more.
    assert (await post_text(http, '{"item": "i3", "value": 5}', 4)).is_success
    assert (await post_text(http, '{"item": "i3", "op": "add", "value": 1}', 6)).is_success
    assert (await post_text(http, '{"item": "i3", "value": 1e-400}', 5)).json()["code"] == "unfoldable-event"
    assert (await http.get("/es/e/current")).json()["state"]["i3"] == 6


async def test_a_repeat_with_the_same_id_is_done_once(http):
    one = await apply(http, [{"item": "n", "value": 1}], headers={"Idempotency-Key": "a-1"})
    two = await apply(http, [{"item": "n", "op": "add", "value": 1}], headers={"Idempotency-Key": "a-2"})
    again = await apply(http, [{"item": "n", "op": "add", "value": 1}], headers={"Idempotency-Key": "a-2"})
    assert one.json()["state"] == {"n": 1}
    assert again.json() == two.json()


async def test_conflicts(http):
    await apply(http, [{"item": "n", "value": 1}], timestamp=10)
    taken = await apply(http, [{"item": "m", "value": 1}], timestamp=10)
    assert (taken.status_code, taken.json()["code"]) == (409, "timestamp-taken")
    revision = (await apply(http, [{"item": "n", "value": 1}], revision=0)).json()
    assert (revision["code"], revision["revision"], revision["timestamp"]) == ("revision-conflict", 1, 10)
    unfoldable = (await apply(http, [{"item": "n", "op": "add", "value": "x"}])).json()
    assert unfoldable["code"] == "unfoldable-event"
    assert (await http.get("/es/e/current")).json()["revision"] == 1


async def test_sealed_events(http):
    body = [{"item": "n", "value": "AAEC", "encoding": "sealed"}, {"item": "m", "value": 1}]
    mixed = (await apply(http, body, timestamp=5)).json()
    assert (mixed["status"], mixed["code"], mixed["pointer"]) == (409, "sealing-mismatch", "/events/1")
    state = (await apply(http, body[:1], timestamp=5)).json()
    assert state["state"] == {}
    event = {"timestamp": 5, "item": "n", "op": "setitem", "value": "AAEC", "encoding": "sealed"}
    assert state["events"] == [event]
    packed = msgspec.msgpack.decode((await http.get("/es/e/current", headers=MSGPACK)).content)
    assert packed["events"] == [{**event, "value": b"\0\1\2"}]
    for plain in (body[1], {"item": "n", "op": "neg"}, {"item": "n", "op": "delitem", "value": None}):
        refused = (await apply(http, [plain], revision=1)).json()
        assert (refused["code"], refused["pointer"]) == ("sealing-mismatch", "/events/0")
    assert (await apply(http, [])).json() == state


async def test_unary_operators_take_a_sealed_value_or_none(http):
    await apply(http, [{"item": item, "value": "AAEC", "encoding": "sealed"} for item in "abc"], timestamp=5)
    events = [
        {"item": "a", "op": "neg", "value": "AAED", "encoding": "sealed"},
        {"item": "b", "op": "delitem", "value": "", "encoding": "sealed"},
    ]
    state = (await apply(http, events, timestamp=6)).json()
    assert [event for event in state["events"] if event["timestamp"] == 6] == [{"timestamp": 6, **events[0]}]
    stored = (await http.get("/es/e/events?start=6")).json()["events"]
    assert stored[1] == {"timestamp": 6, **events[1]}
    event = {"item": "a", "op": "neg", "value": b"\0\1\3", "encoding": "sealed"}
    packed = {"events": [event], "timestamp": 7}
    answer = await http.post("/es/e/events", content=msgspec.msgpack.encode(packed), headers=MSGPACK)
    assert msgspec.msgpack.decode(answer.content)["events"][-1] == {"timestamp": 7, **event}
    await http.post("/es/plain/events", json={"events": [{"item": "c", "value": "AAEC", "encoding": "bytes"}]})
    body = {
        "events": [{"item": "c", "op": "not_", "value": None, "encoding": "json"}],
        "timestamp": 2**60,
        "revision": 1,
    }
    assert (await http.post("/es/plain/events", json=body)).json()["events"][1:] == [
        {"timestamp": 2**60, "item": "c", "op": "not_", "value": None}
    ]


async def test_msgpack(http):
    body = {
        "events": [
            {"item": "a", "value": [1, {"x": None}]},
            {"item": "b", "value": b"[36893488147419103232]", "encoding": "json"},
            {"item": "c", "value": b"\xff", "encoding": "bytes"},
        ],
        "timestamp": 3,
    }
    answer = await http.post("/es/e/events", content=msgspec.msgpack.encode(body), headers=MSGPACK)
    state = msgspec.msgpack.decode(answer.content)
    assert state["state"]["a"] == [1, {"x": None}]
    assert json.loads(state["state"]["b"]) == [2**65]
    assert (await http.get("/es/e/current")).json()["state"]["b"] == [2**65]
    negated = {"events": [{"item": "a", "op": "delitem", "value": None}]}
    assert (
        await http.post("/es/e/events", content=msgspec.msgpack.encode(negated), headers=MSGPACK)
    ).status_code == 200
    events = msgspec.msgpack.decode((await http.get("/es/e/events", headers=MSGPACK)).content)["events"]
    assert [event["value"] for event in events] == [[1, {"x": None}], b"[36893488147419103232]", b"\xff", None]


async def test_a_value_with_line_breaks_stays_on_its_line(http):
    body = b'{"events": [{"item": "a", "value": {"x":\n1,\r\n"y": "\\n"}}]}'
    await http.post("/es/e/events", content=body, headers={"Content-Type": "application/json"})
    (line,) = (await http.get("/es/e/events", headers=NDJSON)).text.splitlines()
    assert json.loads(line)["value"] == {"x": 1, "y": "\n"}


async def test_many_events_are_streamed_and_msgpack_is_bounded(http):
    for number in range(30):
        await apply(http, [{"item": f"i{item:03}", "value": "x" * 200} for item in range(100)], timestamp=number)
    answer = await http.get("/es/e/events")
    assert len(answer.json()["events"]) == 3000
    assert len((await http.get("/es/e/events", headers=NDJSON)).text.splitlines()) == 3000
    refused = await http.get("/es/e/events", headers=MSGPACK)
    assert refused.json()["code"] == "answer-too-large"
    few = await http.get("/es/e/events?n=20", headers=MSGPACK)
    assert len(msgspec.msgpack.decode(few.content)["events"]) == 20


@pytest.mark.parametrize(
    ("event", "code", "pointer"),
    [
        ({"item": "", "value": 1}, "invalid-key", "/events/1/item"),
        ({"item": "x" * 513, "value": 1}, "invalid-key", "/events/1/item"),
        ({"item": "m", "op": "neg", "value": 1}, "invalid-body", "/events/1/value"),
        ({"item": "m", "op": "neg", "value": "AA==", "encoding": "bytes"}, "invalid-body", "/events/1/value"),
        ({"item": "m", "op": "delitem", "value": "AA==", "encoding": "pickle"}, "invalid-body", "/events/1/value"),
        ({"item": "m", "op": "not_", "value": "!", "encoding": "sealed"}, "invalid-value", "/events/1/value"),
        ({"item": "m", "op": "not_", "value": None, "encoding": "sealed"}, "invalid-body", "/events/1/value"),
        ({"item": "m", "op": "add"}, "invalid-body", "/events/1/value"),
        ({"item": "m"}, "invalid-body", "/events/1/value"),
        ({"item": "m", "op": "xor", "value": 1}, "invalid-body", "/events/1/op"),
        ({"item": "m", "value": "!", "encoding": "sealed"}, "invalid-value", "/events/1/value"),
        ({"item": "m", "value": 1, "t": 1}, "invalid-body", "/events/1"),
        ({"item": "n", "value": 1}, "invalid-body", "/events/1/item"),
    ],
)
async def test_an_event_that_is_wrong_is_pointed_at_and_nothing_is_stored(http, event, code, pointer):
    problem = (await apply(http, [{"item": "n", "value": 1}, event])).json()
    assert (problem["code"], problem.get("pointer")) == (code, pointer)
    assert (await http.get("/es")).json()["items"] == []


async def test_no_events_change_nothing(http):
    for members in ({}, {"revision": 0}, {"timestamp": 5}):
        answer = await apply(http, [], **members)
        assert (answer.status_code, answer.json()["code"]) == (404, "sequence-not-found")
    assert (await http.get("/es")).json()["items"] == []
    await apply(http, [{"item": "n", "value": 1}], timestamp=5)
    assert (await apply(http, [], revision=1)).json() == (await http.get("/es/e/current")).json()
    assert (await apply(http, [], revision=0)).json()["code"] == "revision-conflict"


async def test_pruning_may_remove_the_whole(http):
    await apply(http, [{"item": "n", "value": 1}])
    await apply(http, [{"item": "n", "op": "delitem"}])
    kept = (await http.post("/es/e/prune", json={"remove": False})).json()
    assert kept["removed"] is False
    assert (await http.post("/es/e/prune", json={})).json()["removed"] is True
    assert (await http.get("/es/e/current")).status_code == 404
