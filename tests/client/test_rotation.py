"""Rotation of keys, against a real service: what is met on the way, and what others do in between."""

from __future__ import annotations

import operator
import os
import pickle
from collections.abc import Callable

import httpx2
import pytest
from cryptography.fernet import Fernet
from tests.picklable import Call, Position

import rstore
from rstore import Store, StoreConflictError
from rstore.core.encodings import Encoding, Value
from rstore.sealing import EventContext, PairContext, PointContext, Sealer
from rstore.sealing.rotation import ROUNDS_MAX, UNROTATED_LISTED_MAX

OLD, NEW, LOST = (rstore.generate_key() for _ in range(3))


@pytest.fixture
def opened(service_url, namespace):
    """``opened(*keys)`` opens a store on one namespace."""
    stores = []

    def opened(*keys, kind=Store, url=service_url, **options):
        options.setdefault("frozen", False)
        stores.append(kind(url, namespace, list(keys) or None, **options).open())
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


class AsDumped(Store):
    """Stores a value that it is given as it is stored, and any other as usual."""

    def _dump(self, value):
        return value if isinstance(value, Value) else super()._dump(value)


def everything(store):
    return (
        store.find(),
        {key: store.range(key) for key in store.timeseries()},
        {key: (store.current(key, withtimestamp=True), store.events(key)) for key in store.eventsources()},
    )


def test_what_is_not_sealed_is_counted_and_left_alone(opened, service_url, namespace):
    plain = opened()
    plain.set("json", 1)
    plain.set("bytes", b"\x01" * 60)
    plain.set("pickle", {1, 2})
    plain.extend("numbers", (1, 1.5), (2, 2.5))
    plain.extend("values", (1, "x"), (2, b"y"))
    plain.apply("e", {"a": 1, "b": b"x"}, t=1)
    plain.apply("e", {"a": (operator.neg,), "b": (operator.delitem,)}, t=2)
    with httpx2.Client(base_url=f"{service_url}/ns/{namespace}", verify=False) as http:
        assert http.put("/kv/page", content=b"<p>", headers={"Content-Type": "text/html"}).is_success
        old = opened(OLD)
        old.set("sealed", 1)
        old.extend("values", (3, "z"))
        before = http.get("/kv").json(), http.get("/ts/values/range?end=2").text, http.get("/es/e/events").text
        found = opened(NEW, OLD).rotate()
        assert (found.resealed, found.unsealed, found.failed, found.complete) == (2, 4 + 4 + 4, 0, True)
        after = http.get("/kv").json(), http.get("/ts/values/range?end=2").text, http.get("/es/e/events").text
    assert after[1:] == before[1:]
    assert [item for item in after[0]["items"] if item["key"] != "sealed"] == before[0]["items"][:-1]
    assert opened(NEW).get("sealed") == 1


def test_what_opens_under_none_of_the_keys_is_named_and_stops_nothing(opened, namespace):
    old, lost = opened(OLD), opened(LOST)
    for number in range(20):
        store = lost if number in (3, 4, 19) else old
        store.set(f"k{number:02}", number)
        store.extend("s", (number, number))
    lost.apply("e", {"theirs": 1}, t=1)
    sealer, elsewhere = Sealer(OLD), PairContext(namespace, "elsewhere")
    moved = sealer.seal(Value(Encoding.JSON, b"1"), elsewhere)
    plain = opened(kind=AsDumped)
    for key, data in {"z/moved": moved.data, "z/cut": moved.data[:20], "z/empty": b"", "z/noise": bytes(60)}.items():
        plain.set(key, Value(Encoding.SEALED, data))
    found = opened(NEW, OLD).rotate()
    assert (found.resealed, found.failed, found.complete) == (34, 11, False)
    assert [place for place, _ in found.unrotated] == [
        *(PairContext(namespace, f"k{number:02}") for number in (3, 4, 19)),
        *(PairContext(namespace, f"z/{name}") for name in ("cut", "empty", "moved", "noise")),
        *(PointContext(namespace, "s", number) for number in (3, 4, 19)),
        EventContext(namespace, "e", 1, "theirs", "setitem"),
    ]
    reasons = [reason for _, reason in found.unrotated]
    assert Sealer(LOST).key_id in reasons[0]
    assert "cut short" in reasons[3]
    assert "another place" in reasons[5]
    assert found.keys == {Sealer(OLD).key_id: 35, Sealer(LOST).key_id: 7, "unknown": 3}
    assert opened(NEW).range("s", 5, end=18) == [(number, number) for number in range(5, 19)]
    assert lost.get("k03") == 3


def test_no_more_failures_are_listed_than_fit(opened):
    opened(LOST).extend("s", *[(t, t) for t in range(UNROTATED_LISTED_MAX + 500)])
    found = opened(NEW, OLD).rotate()
    assert (found.failed, len(found.unrotated)) == (UNROTATED_LISTED_MAX + 500, UNROTATED_LISTED_MAX)


def test_a_check_writes_nothing_and_a_frozen_store_may_make_it(opened, service_url, namespace):
    old = opened(OLD)
    old.set("k", 1)
    opened(NEW).set("k2", 1)
    frozen = opened(NEW, OLD, frozen=True)
    found = frozen.rotate(check=True)
    assert (found.stale, found.current, found.complete) == (1, 1, False)
    with pytest.raises(rstore.FrozenStoreError):
        frozen.rotate()
    assert old.get("k") == 1
    with pytest.raises(rstore.StoreRequestError, match="needs keys"):
        opened().rotate()
    opened(NEW, OLD).rotate()
    assert frozen.rotate(check=True).complete


def test_small_limits_make_small_steps(serve, tmp_path, opened):
    limits = {"page_size_max": 5, "batch_parts_max": 2, "events_per_call_max": 40, "body_bytes_max": 6_000}
    service = serve(f"sqlite:///{tmp_path}/store.db", limits=limits | {"value_bytes_max": 5_000})
    old = opened(OLD, url=service.url)
    for number in range(13):
        old.set(f"k{number}", "x" * number * 100)
        old.extend("s", *[(100 * number + t, "y" * 100) for t in range(20)])
    old.set("large", "x" * 4_000)
    # More events at one timestamp than the first page has, and than one call may reseal of these.
    for t in (1, 2):
        old.apply("e", {f"item{number}": number for number in range(40)}, t=t)
    before = everything(old)
    assert opened(NEW, OLD, url=service.url).rotate().complete
    assert everything(opened(NEW, url=service.url)) == before


def test_a_namespace_larger_than_an_answer_is_rotated(opened):
    """Each answer is bounded, not what comes altogether; values that grow on the way make smaller pages."""
    old = opened(OLD)
    old.set_many({f"k{number}": b"x" * 1_000 for number in range(600)})
    old.extend("s", *[(t, b"y" * 10) for t in range(5_000)], *[(t, b"z" * 100_000) for t in range(5_000, 5_030)])
    for number in range(30):
        old.apply("e", {f"item{number}": b"w" * (10 if number < 15 else 90_000)})
    narrow = opened(NEW, OLD, answer_bytes_max=2**22)
    with pytest.raises(rstore.StoreProtocolError):
        narrow.range("s")
    found = narrow.rotate()
    assert (found.resealed, found.complete) == (600 + 5_030 + 30, True)
    new = opened(NEW)
    assert new.range("s", 4_999) == [(4_999, b"y" * 10), *[(t, b"z" * 100_000) for t in range(5_000, 5_030)]]
    assert len(new.current("e")) == 30


def test_more_events_at_one_timestamp_than_a_page_has_are_rotated(opened):
    old = opened(OLD)
    old.apply("e", {f"item{number:02}": bytes(60_000) for number in range(80)}, t=1)
    assert opened(NEW, OLD).rotate().resealed == 80
    assert opened(NEW).rotate(check=True).current == 80


# --- in between --------------------------------------------------------------------------------------------


class Meddling(httpx2.HTTPTransport):
    """Does something before a writing request goes on its way, or loses its answer."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__(verify=False, trust_env=False)
        self.meddle = meddle
        self.writes = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "POST":
            return super().handle_request(request)
        self.writes += 1
        if self.meddle is not None:
            self.meddle()
        return super().handle_request(request)


def once(*actions):
    """Each action at its own call, and nothing afterwards."""
    left = list(actions)
    return lambda: left.pop(0)() if left else None


@pytest.mark.parametrize("keys", [(NEW, OLD), (OLD, NEW)], ids=["new", "old"])
def test_what_others_write_between_reading_and_writing_is_kept(opened, keys):
    old, other = opened(OLD), opened(*keys)
    old.set_many({f"k{number}": number for number in range(9)})
    old.extend("s", *[(t, t) for t in range(9)])
    old.apply("e", {f"item{number}": number for number in range(9)}, t=1)
    old.apply("gone", {"a": 1})
    old.apply("pruned", {"a": 1}, t=1)
    old.apply("pruned", {"a": 2}, t=2)

    def meddle():
        other.set("k3", "theirs")
        other.delete("k4", "k8")
        other.extend("s", (3, "theirs"), (100, "new"))
        other.remove("s", start=4, end=4)
        other.apply("e", {"item3": (operator.add, 1000)})
        other.prune("gone", "pruned")
        other.apply("gone", {"a": (operator.delitem,)})
        other.prune("gone")

    transport = Meddling(once(meddle, *[lambda: other.extend("s", (5, "theirs too"))] * 5))
    rotating = opened(NEW, OLD, transport=transport)
    found = rotating.rotate()
    assert found.failed == 0
    assert opened(NEW, OLD).rotate().complete
    new = opened(NEW)
    expected = {f"k{number}": number for number in range(9) if number not in (4, 8)} | {"k3": "theirs"}
    assert dict(new.find()) == expected
    points = {t: t for t in range(9) if t != 4} | {3: "theirs", 5: "theirs too", 100: "new"}
    assert dict(new.range("s")) == points
    assert new.current("e") == {f"item{number}": number + 1000 * (number == 3) for number in range(9)}
    assert new.eventsources() == ["e", "pruned"]
    assert new.events("pruned") == [(2, "a", operator.setitem, 2)]
    transport.close()


def test_a_value_that_others_never_leave_alone_is_named_in_the_end(opened, namespace):
    old = opened(OLD)
    old.set("k", 0)
    old.set("quiet", 1)
    transport = Meddling(lambda: old.set("k", "again"))
    found = opened(NEW, OLD, transport=transport).rotate()
    assert [place.key for place, _ in found.unrotated] == ["k"]
    assert "kept writing" in found.unrotated[0].reason
    assert found.resealed == 1
    assert ROUNDS_MAX < transport.writes < 2 * ROUNDS_MAX
    transport.close()


class Losing(httpx2.HTTPTransport):
    """Loses the answer of the first attempt of each write."""

    lost = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if request.method == "POST":
            self.lost = not self.lost
            if self.lost:
                response.close()
                raise httpx2.ReadError("lost")
        return response


def test_a_lost_answer_loses_nothing_else(opened):
    old = opened(OLD)
    old.set_many({f"k{number}": number for number in range(9)})
    old.extend("s", *[(t, t) for t in range(9)])
    old.apply("e", {"a": 1, "b": 2})
    before = everything(old)
    with Losing(verify=False, trust_env=False) as transport:
        assert opened(NEW, OLD, transport=transport).rotate().complete
    assert everything(opened(NEW)) == before


class Scattered(httpx2.HTTPTransport):
    """A service that keeps its keys in different parts, so that no batch of several is atomic."""

    refused = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/kv") and request.method == "POST" and request.read().count(b'"key":') > 1:
            self.refused += 1
            problem = {"code": "batch-not-atomic", "title": "", "detail": "these keys lie apart"}
            return httpx2.Response(422, json=problem, headers={"content-type": "application/problem+json"})
        return super().handle_request(request)


def test_pairs_that_cannot_be_written_together_are_written_alone(opened):
    opened(OLD).set_many({f"k{number}": number for number in range(5)})
    with Scattered(verify=False, trust_env=False) as transport:
        assert opened(NEW, OLD, transport=transport).rotate().resealed == 5
        assert transport.refused
    assert dict(opened(NEW).find()) == {f"k{number}": number for number in range(5)}


def test_fernet_tokens_that_are_sealed_become_bound_to_their_place(opened):
    token = Value(Encoding.SEALED, Fernet(OLD).encrypt(pickle.dumps((1, "x"))))
    opened(kind=AsDumped).set("k", token)
    assert opened(NEW, OLD).rotate().failed == 1
    found = opened(NEW, OLD, accept_fernet=True).rotate()
    assert (found.resealed, found.keys) == (1, {"unknown": 1})
    assert opened(NEW).get("k") == (1, "x")


def test_pickles_of_any_type_are_sealed_anew_and_not_loaded(opened, tmp_path):
    trace = tmp_path / "ran"
    ran = Call(os.mkdir, str(trace))
    pickled = Value(Encoding.PICKLE, pickle.dumps(ran))
    values = {"type": Position(1, 2), "class": Position, "call": pickled}
    old = opened(OLD, kind=AsDumped, trust_pickle=True)
    for name, value in values.items():
        old.set(name, value)
        old.extend(name, (1, value))
        if value is not pickled:
            old.apply("e", {name: (operator.setitem, value)})
    found = opened(NEW, OLD).rotate()
    assert (found.resealed, found.failed) == (8, 0)
    assert not trace.exists()
    new = opened(NEW, trust_pickle=True)
    assert new.get("type") == new.last("type")[1] == new.current("e")["type"] == Position(1, 2)
    assert new.get("class") is new.last("class")[1] is new.current("e")["class"] is Position
    untrusting = opened(NEW)
    for name in values:
        for read in (untrusting.get, untrusting.range):
            with pytest.raises(rstore.StoreEncodingError, match="trust_pickle=True"):
                read(name)
    assert not trace.exists()
    new.get("call")
    assert trace.exists()


def test_an_etag_from_before_is_one_from_before(opened):
    old = opened(OLD)
    etag = old.set("k", 1)
    both = opened(NEW, OLD)
    both.rotate()
    with pytest.raises(StoreConflictError):
        both.set("k", 2, if_match=etag)
    assert both.set("k", 2, if_match=both.entry("k").etag)


@pytest.mark.parametrize(
    "pages",
    [
        [b'{"items": [{"key": "b"}, {"key": "a"}], "cursor": null}'],
        [b'{"items": [{"key": "b"}], "cursor": "x"}', b'{"items": [{"key": "a"}], "cursor": null}'],
        [b'{"items": [], "cursor": "x"}', b'{"items": [], "cursor": "x"}'],
        [b'{"items": [{"key": "a", "points": -1}], "cursor": null}'],
    ],
)
def test_a_listing_that_is_none_is_refused(scripted, json_reply, pages):
    left = list(pages)

    def script(request):
        if request.target == "/ns/default":
            return json_reply(b'{"namespace": "default", "sealed_only": false, "kv": 1, "ts": 1, "es": 1}')
        return json_reply(left.pop(0)) if left else None

    with Store(scripted(script).url, "default", NEW, retries=0) as store, pytest.raises(rstore.StoreProtocolError):
        store.rotate(check=True)
