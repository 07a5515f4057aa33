"""Answers that get lost: the SDK sends again, and everything happens exactly once."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator

import pytest
from tests.relay import Relay

import rstore
from rstore import AsyncStore, Store, StoreConflictError, StoreIntegrityError, StoreNotAvailableError


class LosingProxy(Relay):
    """Breaks off instead of passing on ``losses`` answers, after ``skips`` that come through."""

    losses = skips = lost = 0

    def passes(self, chunk: bytes, *, answer: bool) -> bool:
        if not (answer and self.losses):
            return True
        if self.skips:
            self.skips -= 1
            return True
        self.losses -= 1
        self.lost += 1
        return False


@pytest.fixture(scope="module")
def service(serve_module, tmp_path_factory):
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('retries') / 'store.db'}")


@pytest.fixture
def proxy(service) -> Iterator[LosingProxy]:
    proxy = LosingProxy(service.url)
    yield proxy
    proxy.close()


@pytest.fixture(params=[None, rstore.generate_key()], ids=["plain", "sealed"])
def store(proxy, request) -> Iterator[Store]:
    with Store(proxy.url, "retries", request.param, frozen=False) as store:
        yield store
        store.discard()


@contextlib.contextmanager
def losing(proxy: LosingProxy, losses: int) -> Iterator[None]:
    """The next answers are lost; it is an error if they are not."""
    before = proxy.lost
    proxy.losses = losses
    yield
    assert proxy.lost == before + losses


@pytest.mark.parametrize("losses", [1, 2])
def test_pairs(proxy, store, losses):
    with losing(proxy, losses):
        first = store.set("k", 1, if_absent=True)
    assert store.entry("k").etag == first
    with losing(proxy, losses):
        second = store.set("k", 2, if_match=first)
    assert store.entry("k").etag == second != first
    with losing(proxy, losses), pytest.raises(StoreConflictError):
        store.set("k", 3, if_match=first)
    with losing(proxy, losses), pytest.raises(StoreConflictError):
        store.set("k", 2, if_absent=True)
    with losing(proxy, losses):
        store.set_many({"a": 1, "b": 2})
    with losing(proxy, losses):
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}
    with losing(proxy, losses):
        store.delete("a")
    with losing(proxy, losses):
        del store["b"]
    assert store.find() == [("k", 2)]


def test_a_counter_through_losses_is_exact(proxy, store):
    store.set("n", 0)
    for number in range(12):
        entry = store.entry("n")
        proxy.losses = number % 3
        store.set("n", entry.value + 1, if_match=entry.etag)
    assert store.get("n") == 12


def test_two_writers_of_one_value_are_told_apart_even_when_an_answer_is_lost(proxy, service, store):
    """The answer is lost, and the other writer wins the race with equal content: that is not our write."""
    etag = store.set("n", 0)
    other = store.set("n", 1, if_match=etag)
    with losing(proxy, 1), pytest.raises(StoreConflictError):
        store.set("n", 1, if_match=etag)
    assert store.entry("n").etag == other


@pytest.mark.parametrize("losses", [1, 2])
def test_series(proxy, store, losses):
    with losing(proxy, losses):
        store.extend("s", *[(t, t) for t in range(10)])
    with losing(proxy, losses):
        store.remove("s", start=5)
    with losing(proxy, losses):
        assert store.range("s") == [(t, t) for t in range(5)]


@pytest.mark.parametrize("losses", [1, 2])
def test_an_apply_happens_exactly_once(proxy, store, losses):
    with losing(proxy, losses):
        assert store.apply("e", {"n": 0, "gone": 1}) == {"gone": 1, "n": 0}
    for number in range(1, 4):
        with losing(proxy, losses):
            assert store.apply("e", {"n": (operator.add, 1)})["n"] == number
    with losing(proxy, losses):
        assert store.apply("e", {"gone": (operator.delitem,)}) == {"n": 3}
    with losing(proxy, losses):
        assert store.apply("e", {"early": 1}, t=5) == {"early": 1, "n": 3}
    with losing(proxy, losses), pytest.raises(StoreIntegrityError):
        store.apply("e", {"late": 1}, t=5)
    assert len(store.events("e")) == 7
    with losing(proxy, losses):
        store.prune("e")
    assert store.current("e") == {"early": 1, "n": 3}


def test_the_answer_to_the_apply_itself_is_lost(proxy, store):
    """A sealed apply reads before it writes, so the second answer is that of the write."""
    store.apply("e", {"n": 0})
    for skipped in (0, 1) if "sealed" in repr(store) else (0, 0):
        proxy.skips = skipped
        with losing(proxy, 1):
            store.apply("e", {"n": (operator.add, 1)})
    assert store.current("e") == {"n": 2}
    assert len(store.events("e")) == 3


def test_when_every_answer_is_lost_the_store_is_not_available(proxy):
    with Store(proxy.url, "retries", frozen=False, retries=2) as store:
        with losing(proxy, 3), pytest.raises(StoreNotAvailableError):
            store.set("k", 1)
        assert store.get("k") == 1
        store.discard()


@pytest.mark.anyio
async def test_an_async_store_retries_too(proxy):
    async with AsyncStore(proxy.url, "retries", frozen=False) as store:
        with losing(proxy, 2):
            etag = await store.set("k", 1, if_absent=True)
        with losing(proxy, 1):
            await store.set("k", 2, if_match=etag)
        with losing(proxy, 1):
            assert await store.apply("e", {"n": 1}) == {"n": 1}
        with losing(proxy, 2):
            assert await store.apply("e", {"n": (operator.add, 1)}) == {"n": 2}
        assert len(await store.events("e")) == 2
        await store.discard()
