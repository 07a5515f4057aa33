"""Namespaces: isolation, discard, policy, and the names that namespaces and keys may have."""

from __future__ import annotations

import pytest

import rstore
from rstore import StoreError, StoreNotAvailableError, StoreNotFoundError

pytestmark = pytest.mark.anyio


async def fill(store):
    await store.set("k", "value")
    await store.extend("k", (1, "value"), (2, "value"))
    await store.apply("k", {"k": "value"})


async def everything(store):
    return (
        await store.find(),
        [await store.range(key) for key in await store.timeseries()],
        [await store.current(key) for key in await store.eventsources()],
    )


async def test_kinds_with_one_key_do_not_meet(store):
    await fill(store)
    await store.delete("k")
    assert await store.range("k") == [(1, "value"), (2, "value")]
    await store.remove("k")
    assert await store.current("k") == {"k": "value"}
    assert await store.keys() == await store.timeseries() == []
    assert await store.eventsources() == ["k"]


async def test_namespaces_do_not_meet(driver, store, namespace):
    other = await driver.open(f"{namespace}.other")
    await fill(store)
    assert await everything(other) == ([], [], [])
    await other.set("k", "other")
    await other.extend("k", (1, "other"))
    await other.apply("k", {"k": "other"})
    await other.remove("k")
    await other.delete("k")
    await other.discard()
    assert await everything(store) == ([("k", "value")], [[(1, "value"), (2, "value")]], [{"k": "value"}])


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a."), ("a-b", "a_b"), ("A", "a"), ("..", "."), ("x" * 128, "x" * 127)]
)
async def test_similar_names_are_different_namespaces(driver, namespace, first, second):
    # Only here do names repeat between tests, so what an earlier one left goes first.
    stores = [await driver.open(name) for name in (first, second)]
    for store in stores:
        await store.discard()
    await stores[0].set("k", 1)
    assert await stores[1].keys() == []
    assert await stores[0].get("k") == 1
    for store in stores:
        await store.discard()


async def test_discard_leaves_nothing(driver, store, namespace):
    await fill(store)
    await store.extend("long", *[(t, t) for t in range(3_000)])
    await store.set("brief", 1, ttl=100)
    assert namespace in await store.namespaces()
    await store.discard()
    assert namespace not in await store.namespaces()
    again = await driver.open(namespace)
    assert await everything(again) == ([], [], [])
    assert await again.get("k") is None
    assert await again.range("long") == []
    assert await again.events("k") is None
    assert await again.count() == 0
    await again.set("brief", 2)
    assert (await again.entry("brief")).expires_ms is None
    await again.discard()
    await again.discard()


async def test_namespaces_lists_in_order(driver, store, namespace):
    names = [f"{namespace}.{letter}" for letter in "bCa"]
    for name in names:
        await (await driver.open(name)).set("k", 1)
    listed = await store.namespaces()
    assert [name for name in listed if name.startswith(f"{namespace}.")] == sorted(names)
    assert listed == sorted(listed)


@pytest.mark.requires("client")
async def test_opening_a_frozen_store_on_a_missing_namespace(driver, namespace):
    with pytest.raises(StoreNotAvailableError):
        await driver.open(f"{namespace}.missing", frozen=True)
    created = await driver.open(f"{namespace}.missing", frozen=False)
    frozen = await driver.open(f"{namespace}.missing", frozen=True)
    assert await frozen.keys() == []
    await created.discard()


@pytest.mark.requires("client")
async def test_the_default_namespace(driver):
    default = await driver.open(None)
    await default.set("rstore-conformance", "value")
    named = await driver.open("default")
    assert await named.get("rstore-conformance") == "value"
    await named.delete("rstore-conformance")
    assert await default.get("rstore-conformance") is None


@pytest.mark.requires("client")
async def test_the_namespace_can_be_fixed_on_the_class(driver, store, namespace):
    fixed = await driver.open(None, attributes={"_namespace": namespace}, like=store)
    await fixed.set("k", 1)
    assert await store.get("k") == 1


@pytest.mark.requires("sealing")
async def test_the_key_can_be_fixed_on_the_class(driver, namespace):
    key = rstore.generate_key()
    fixed = await driver.open(namespace, attributes={"_key": key})
    await fixed.set("k", "secret")
    assert await (await driver.open(namespace, key=key)).get("k") == "secret"
    with pytest.raises(StoreError):
        await (await driver.open(namespace)).get("k")


@pytest.mark.requires("wire", "sealing")
async def test_a_sealed_only_namespace_takes_nothing_else(driver, namespace):
    answer = await driver.http.put(f"/ns/{namespace}", json={"sealed_only": True})
    assert answer.status_code == 201
    assert answer.json()["sealed_only"] is True
    plain = await driver.open(namespace)
    for write in (
        lambda: plain.set("k", 1),
        lambda: plain.set("k", b"bytes"),
        lambda: plain.set("k", (1, 2)),
        lambda: plain.set_many({"k": 1}),
        lambda: plain.extend("s", (1, 1)),
        lambda: plain.apply("e", {"a": 1}),
    ):
        with pytest.raises(StoreError) as caught:
            await write()
        assert caught.value.code == "sealed-only"
    assert await everything(plain) == ([], [], [])
    sealed = await driver.open(namespace, key=rstore.generate_key())
    await fill(sealed)
    assert await everything(sealed) == ([("k", "value")], [[(1, "value"), (2, "value")]], [{"k": "value"}])
    answer = await driver.http.get(f"/ns/{namespace}")
    assert answer.json() == {"namespace": namespace, "sealed_only": True, "kv": 1, "ts": 1, "es": 1}


# --- names -------------------------------------------------------------------------------------------------

LEGAL_KEYS = [
    "a",
    "a/b",
    "/",
    "//",
    ".",
    "..",
    "../..",
    "a/../b",
    "a?b#c",
    "?",
    "#",
    "%",
    "%2F",
    "%2f",
    "%00",
    "%25",
    " ",
    " a ",
    "+",
    "a+b c",
    "\n",
    "\r\n",
    "\t",
    "\x01",
    "\x7f",
    "\x85",
    "\ufeff",
    "\u2028",
    "é",
    "e\u0301",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0010ffff",
    "__",
    "a__b",
    "*",
    ";a=b",
    "&=",
    '"',
    "'",
    "\\",
    "{key}",
    "kv",
    "range",
    "a:b@c",
    "x" * 512,
    "é" * 256,
    "\U0001f600" * 128,
]


@pytest.mark.parametrize("key", LEGAL_KEYS, ids=lambda key: ascii(key)[:30])
async def test_every_legal_key_round_trips(store, key):
    await store.set(key, key)
    assert await store.get(key) == key
    assert await store.has(key)
    assert (await store.entry(key)).value == key
    assert await store.keys() == [key]
    await store.extend(key, (0, key))
    assert await store.range(key) == [(0, key)]
    assert await store.first(key) == await store.last(key) == (0, key)
    assert await store.missing(key, 0, 1, 1) == [1]
    assert await store.timeseries() == [key]
    assert await store.apply(key, {key: key}, t=0) == {key: key}
    assert await store.current(key) == await store.past(key, 0) == {key: key}
    assert [event[1] for event in await store.events(key)] == [key]
    assert await store.eventsources() == [key]
    await store.prune(key)
    await store.remove(key)
    await store.delete(key)
    assert await store.keys() == await store.timeseries() == []


async def test_keys_that_differ_only_in_form_are_different(store):
    keys = sorted(
        ["a/b", "a%2Fb", "a%2fb", "a b", "a+b", "a%20b", "é", "e\u0301", "A", "a", "a ", " a"], key=str.encode
    )
    for key in keys:
        await store.set(key, key)
        await store.extend(key, (0, key))
    assert await store.keys() == await store.timeseries() == keys
    assert [await store.get(key) for key in keys] == keys
    assert [await store.last(key) for key in keys] == [(0, key) for key in keys]


ILLEGAL_KEYS = [("", "empty"), ("\0", "NUL"), ("a\0b", "NUL"), ("\ud800", "surrogate"), ("a\udfff", "surrogate")]
ILLEGAL_KEYS += [("x" * 513, "512"), ("é" * 257, "512"), ("\U0001f600" * 129, "512")]


@pytest.mark.parametrize(("key", "reason"), ILLEGAL_KEYS, ids=lambda part: ascii(part)[:20])
async def test_every_illegal_key_is_refused_with_its_reason(store, key, reason):
    for call in (
        lambda: store.set(key, 1),
        lambda: store.set_many({"good": 1, key: 1}),
        lambda: store.get(key),
        lambda: store.has(key),
        lambda: store.delete("good", key),
        lambda: store.extend(key, (1, 1)),
        lambda: store.range(key),
        lambda: store.remove(key),
        lambda: store.apply(key, {"a": 1}),
        lambda: store.current(key),
        lambda: store.prune(key),
    ):
        with pytest.raises((StoreError, ValueError)) as caught:
            await call()
        assert reason in str(caught.value)
    assert await everything(store) == ([], [], [])


@pytest.mark.requires("client")
@pytest.mark.parametrize("name", ["a b", "a/b", "é", "x" * 129, "a\n", "\0"])
async def test_every_illegal_namespace_is_refused(driver, name):
    with pytest.raises((StoreError, ValueError)) as caught:
        await driver.open(name)
    assert not isinstance(caught.value, StoreNotFoundError)
