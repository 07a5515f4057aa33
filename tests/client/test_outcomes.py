"""An error says what became of the write: nothing, something perhaps, or all of it."""

from __future__ import annotations

import base64
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

import rstore
from rstore import AsyncStore, Store, StoreEncodingError, StoreError, StoreIntegrityError, StoreNotAvailableError
from rstore.store.bare import open_unasked

pytestmark = pytest.mark.anyio
KEY, OLD_KEY = rstore.generate_key(), rstore.generate_key()


@pytest.fixture
def store(service_url, namespace):
    with Store(service_url, namespace, frozen=False) as store:
        yield store
        store.discard()


def outcome(error: StoreError) -> tuple[bool, bool]:
    return error.done, error.outcome_unknown


# --- done, and then something failed -----------------------------------------------------------------------

UNREADABLE = pickle.dumps(operator.attrgetter("x"))


def with_an_item_that_cannot_be_read(store: Store, service_url: str) -> None:
    """A sequence with an item that somebody else wrote, of a type that this store does not load."""
    store.apply("e", {"n": 1}, t=1)
    body = {"item": "odd", "value": base64.b64encode(UNREADABLE).decode(), "encoding": "pickle"}
    url = f"{service_url}/ns/{store.namespace}/es/e/events"
    assert httpx2.post(url, json={"events": [body], "timestamp": 2}).is_success


@pytest.mark.parametrize(
    ("change", "t"),
    [
        (2, 0),
        *((change, t) for change in (2, (operator.add, 1), (operator.neg,), (operator.delitem,)) for t in (None, 5)),
    ],
)
async def test_an_apply_whose_answer_cannot_be_decoded_was_done(store, service_url, change, t):
    with_an_item_that_cannot_be_read(store, service_url)
    events = httpx2.get(f"{service_url}/ns/{store.namespace}/es/e/events").json()["events"]
    with pytest.raises(StoreEncodingError) as caught:
        store.apply("e", {"n": change}, t=t)
    assert outcome(caught.value) == (True, False)
    async with AsyncStore(service_url, store.namespace, frozen=False) as awaited:
        with pytest.raises(StoreEncodingError) as caught:
            await awaited.apply("e", {"m": 1})
    assert outcome(caught.value) == (True, False)
    after = httpx2.get(f"{service_url}/ns/{store.namespace}/es/e/events").json()["events"]
    assert len(after) == len(events) + 2


def test_an_apply_that_has_to_read_first_does_nothing_where_it_cannot(store, service_url):
    with_an_item_that_cannot_be_read(store, service_url)
    with pytest.raises(StoreEncodingError) as caught:
        store.apply("e", {"pair": (1, 2)})
    assert outcome(caught.value) == (False, False)
    assert len(httpx2.get(f"{service_url}/ns/{store.namespace}/es/e/events").json()["events"]) == 2


@pytest.mark.parametrize("failure", [StoreEncodingError, ValueError, KeyError])
def test_a_load_of_ones_own_that_fails_after_the_write_is_told_of_as_well(service_url, namespace, failure):
    class Picky(Store):
        def _load(self, data):
            raise failure("secret value")

    with Picky(service_url, namespace, frozen=False) as picky:
        with pytest.raises(StoreEncodingError) as caught:
            picky.apply("e", {"n": 1})
        assert outcome(caught.value) == (True, False)
        assert failure is StoreEncodingError or "secret" not in str(caught.value)
        assert len(httpx2.get(f"{service_url}/ns/{namespace}/es/e/events").json()["events"]) == 1
        with pytest.raises(failure) as caught:
            picky.current("e")
        assert not getattr(caught.value, "done", False)
        picky.discard()


# --- done in part --------------------------------------------------------------------------------------------


class Failing(httpx2.HTTPTransport):
    """Passes on so many writes, and answers the others with a problem."""

    def __init__(self, passed: int, status: int, code: str) -> None:
        super().__init__(verify=False, trust_env=False)
        self.left = passed
        self.problem = status, {"code": code, "title": code, "status": status}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if "idempotency-key" not in request.headers or request.url.raw_path.count(b"/") == 2:
            return super().handle_request(request)
        self.left -= 1
        if self.left >= 0:
            return super().handle_request(request)
        status, document = self.problem
        headers = {"content-type": "application/problem+json"}
        return httpx2.Response(status, headers=headers, content=json.dumps(document).encode())


SEVERAL: dict[str, Callable[[Store], Any]] = {
    "delete": lambda store: store.delete(*[f"k{number}" for number in range(1_500)]),
    "remove": lambda store: store.remove("s", "s2", "s3"),
    "prune": lambda store: store.prune("e", "e2", "e3"),
    "rotate": lambda store: store.rotate(),
}
ONE: dict[str, Callable[[Store], Any]] = {
    "set": lambda store: store.set("k1", 2),
    "set_many": lambda store: store.set_many({"k1": 1, "k2": 2}),
    "delete of one": lambda store: store.delete("k1"),
    "extend": lambda store: store.extend("s", (1, 2), (2, 3)),
    "remove of one": lambda store: store.remove("s"),
    "apply": lambda store: store.apply("e", {"n": (operator.add, 1)}),
    "prune of one": lambda store: store.prune("e"),
}


@pytest.mark.parametrize("refusal", [(422, "sealed-only"), (403, "access-denied"), (507, "storage-full")])
@pytest.mark.parametrize("name", [*SEVERAL, *ONE])
def test_what_was_done_in_part_is_not_said_to_be_undone(service_url, namespace, name, refusal):
    with Store(service_url, namespace, OLD_KEY, frozen=False) as old:
        old.set_many({f"k{number}": number for number in range(3)})
        for key in ("s", "s2", "s3"):
            old.extend(key, (1, 1))
        for key in ("e", "e2", "e3"):
            old.apply(key, {"n": 1})
        for passed in (0, 1):
            with Failing(passed, *refusal) as transport:
                store = Store(service_url, namespace, [KEY, OLD_KEY], frozen=False, transport=transport, retries=0)
                with store:
                    if passed and name in ONE:
                        ONE[name](store)
                        continue
                    with pytest.raises(StoreError) as caught:
                        (SEVERAL | ONE)[name](store)
            assert type(caught.value) is not StoreIntegrityError
            assert outcome(caught.value) == (False, passed > 0), passed
        old.discard()


def test_a_count_that_is_not_what_was_sent_leaves_the_outcome_open(scripted, json_reply):
    server = scripted(lambda request: json_reply(b'{"points": 1}'))
    store = Store(server.url, "n", frozen=False)
    open_unasked(store)
    with pytest.raises(StoreError) as caught:
        store.extend("k", (1, 1), (2, 2))
    assert outcome(caught.value) == (False, True)
    store.close()


def test_no_service_no_write(closed_port):
    store = Store(f"http://127.0.0.1:{closed_port}", "n", frozen=False, retries=0)
    open_unasked(store)
    for write in (SEVERAL | ONE).values():
        if write is not SEVERAL["rotate"]:
            with pytest.raises(StoreNotAvailableError) as caught:
                write(store)
            assert outcome(caught.value) == (False, False)
    store.close()
