"""Key/value pairs: every operation of the SDK on every backend, with the meaning that docs/sdk.md gives it."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import time

import pytest

from rstore import KEEP, FrozenStoreError, StoreConflictError, StoreError

pytestmark = pytest.mark.anyio


async def test_set_get_delete(store):
    etag = await store.set("k", {"a": [1, 2.5, None, True, "ü"]})
    assert isinstance(etag, str)
    assert etag
    assert await store.get("k") == {"a": [1, 2.5, None, True, "ü"]}
    await store.delete("k")
    assert await store.get("k") is None


async def test_get_of_an_absent_key_gives_the_default(store):
    assert await store.get("absent") is None
    assert await store.get("absent", 7) == 7
    await store.set("present", 1)
    assert await store.get("absent", 7) == 7


async def test_a_stored_none_is_a_value(store):
    await store.set("none", None)
    assert await store.get("none", "default") is None
    assert await store.has("none")
    assert await store.keys() == ["none"]
    assert await store.find() == [("none", None)]
    assert await store.get_many(["none"]) == {"none": None}
    assert (await store.entry("none")).value is None


@pytest.mark.parametrize("value", [0, 0.0, False, "", [], {}, -0.0])
async def test_falsy_values_are_values(store, value):
    await store.set("falsy", value)
    got = await store.get("falsy", "default")
    assert repr(got) == repr(value)


async def test_set_replaces(store):
    await store.set("k", "old")
    await store.set("k", "new")
    assert await store.get("k") == "new"
    assert await store.count() == 1


async def test_the_etag_tells_whether_the_key_changed(store):
    first = await store.set("k", 1)
    assert (await store.entry("k")).etag == first
    second = await store.set("k", 2)
    assert second != first
    assert (await store.entry("k")).etag == second


async def test_entry_of_an_absent_key_is_none(store):
    assert await store.entry("absent") is None


async def test_delete_is_silent_on_absent_keys_and_takes_several(store):
    await store.set_many({"a": 1, "b": 2, "c": 3})
    await store.delete("absent")
    await store.delete("a", "absent", "c")
    await store.delete()
    assert await store.keys() == ["b"]


async def test_has(store):
    await store.set("k", 1)
    assert await store.has("k") is True
    assert await store.has("K") is False
    await store.delete("k")
    assert await store.has("k") is False


async def test_keys_and_find_are_in_order_of_their_utf8_bytes(store):
    keys = ["b", "a", "a!", "aa", "Z", "é", "\U0001f600", "\uffff", "~", "a\n"]
    await store.set_many({key: key for key in keys})
    expected = sorted(keys, key=str.encode)
    assert await store.keys() == expected
    assert await store.find() == [(key, key) for key in expected]
    assert await store.count() == len(keys)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), ["a", "ab", "abc", "b", "ba", "x*y", "x?y", "xzy"]),
        (("a",), ["a"]),
        (("a*",), ["a", "ab", "abc"]),
        (("*b",), ["ab", "b"]),
        (("?",), ["a", "b"]),
        (("a?",), ["ab"]),
        (("?b?",), ["abc"]),
        (("*",), ["a", "ab", "abc", "b", "ba", "x*y", "x?y", "xzy"]),
        (("*b*",), ["ab", "abc", "b", "ba"]),
        (("a", "b"), ["a", "b"]),
        (("a*", "ab"), ["a", "ab", "abc"]),
        (("x?y",), ["x*y", "x?y", "xzy"]),
        (("nothing",), []),
        (("",), []),
        (("A*",), []),
        (("[ab]",), []),
        (("a.*",), []),
        (("**a**",), ["a", "ab", "abc", "ba"]),
    ],
)
async def test_find_matches_whole_keys(store, patterns, expected):
    for number, key in enumerate(["a", "ab", "abc", "b", "ba", "x*y", "x?y", "xzy"]):
        await store.set(key, number)
    found = await store.find(*patterns)
    assert [key for key, _ in found] == expected
    assert all([await store.get(key) == value for key, value in found])


async def test_a_question_mark_is_one_character_not_one_byte(store):
    await store.set_many({"é": 1, "\U0001f600": 2, "ab": 3, "\n": 4})
    assert [key for key, _ in await store.find("?")] == ["\n", "é", "\U0001f600"]


async def test_a_glob_that_would_backtrack_is_quick(store, deployment):
    await store.set("a" * 500, 1)
    start = deployment.cpu_seconds
    assert await store.find("*a" * 100 + "b") == []
    assert deployment.cpu_seconds - start < 2


async def test_get_many_and_set_many(store):
    etags = await store.set_many({"a": 1, "b": [2], "c": None})
    assert list(etags) == ["a", "b", "c"]
    assert etags["b"] == (await store.entry("b")).etag
    assert await store.get_many(["c", "absent", "a"]) == {"c": None, "a": 1}
    assert await store.get_many([]) == {}
    assert await store.set_many({}) == {}


async def test_many_keys_page_through(store):
    expected = {f"key-{number:05}": number for number in range(2_500)}
    await store.set_many(expected)
    assert await store.count() == 2_500
    assert await store.keys() == list(expected)
    assert await store.find() == list(expected.items())
    assert await store.get_many(list(expected)) == expected
    assert await store.find("key-0249?") == [(f"key-0249{digit}", 2490 + digit) for digit in range(10)]


async def test_an_expired_value_is_never_visible(store):
    await store.set("brief", "value", ttl=60)
    await store.set("lasting", "value", ttl=60)
    entry = await store.entry("brief")
    assert entry is not None
    assert 0 < entry.expires_ms - time.time() * 1000 < 65_000
    assert await store.has("brief")
    # Nothing is asked while it lasts, which on a busy machine may be over before the answer comes.
    await store.set("brief", "value", ttl=0.05)
    await store.set("new", "value", ttl=0.05)
    await asyncio.sleep(0.1)
    for key in ("brief", "new"):
        assert await store.get(key, "gone") == "gone"
        assert await store.entry(key) is None
        assert await store.has(key) is False
    assert await store.keys() == ["lasting"]
    assert await store.find() == [("lasting", "value")]
    assert await store.get_many(["brief", "lasting", "new"]) == {"lasting": "value"}
    assert await store.count() == 1


async def test_an_expired_key_counts_as_absent_for_conditions(store):
    etag = await store.set("k", 1, ttl=0.05)
    await asyncio.sleep(0.1)
    with pytest.raises(StoreConflictError):
        await store.set("k", 2, if_match=etag)
    assert await store.get("k") is None
    await store.set("k", 3, if_absent=True)
    entry = await store.entry("k")
    assert entry.value == 3
    assert entry.expires_ms is None, "the new value took over the expiry of the one that had expired"


async def test_an_update_keeps_the_expiry_unless_told_otherwise(store):
    await store.set("k", 1, ttl=100)
    expiry = (await store.entry("k")).expires_ms
    await store.set("k", 2)
    assert (await store.entry("k")).expires_ms == expiry
    await store.set("k", 3, ttl=KEEP)
    assert (await store.entry("k")).expires_ms == expiry
    await store.set_many({"k": 4})
    assert (await store.entry("k")).expires_ms == expiry
    await store.set("k", 5, ttl=None)
    assert (await store.entry("k")).expires_ms is None
    await store.set("k", 5, ttl=1000)
    assert (await store.entry("k")).expires_ms > expiry
    await store.set_many({"k": 6}, ttl=None)
    assert (await store.entry("k")).expires_ms is None


async def test_a_new_key_never_expires_by_itself(store):
    await store.set("k", 1)
    assert (await store.entry("k")).expires_ms is None
    await store.set("brief", 1, ttl=100)
    await store.delete("brief")
    await store.set("brief", 2)
    assert (await store.entry("brief")).expires_ms is None


async def test_set_many_with_ttl(store):
    await store.set_many({"a": 1, "b": 2}, ttl=60)
    assert await store.count() == 2
    await store.set_many({"a": 1, "b": 2, "new": 3}, ttl=0.05)
    await asyncio.sleep(0.1)
    assert await store.keys() == []


@pytest.mark.parametrize("ttl", [-1, -0.001, float("nan"), float("inf"), 1e300])
async def test_an_impossible_ttl_is_refused(store, ttl):
    await store.set("k", "old")
    with pytest.raises((StoreError, ValueError)):
        await store.set("k", "new", ttl=ttl)
    assert await store.get("k") == "old"


async def test_a_ttl_of_zero_is_not_forever(store):
    with contextlib.suppress(StoreError, ValueError):
        await store.set("k", 1, ttl=0)
    assert await store.get("k") is None


async def test_compare_and_set(store):
    first = await store.set("k", 1)
    second = await store.set("k", 2, if_match=first)
    with pytest.raises(StoreConflictError) as caught:
        await store.set("k", 3, if_match=first)
    assert caught.value.code == "precondition-failed"
    assert await store.get("k") == 2
    await store.set("k", 4, if_match=second)
    assert await store.get("k") == 4


async def test_if_match_refuses_an_absent_key(store):
    with pytest.raises(StoreConflictError):
        await store.set("absent", 1, if_match="0123")
    assert not await store.has("absent")


async def test_if_absent(store):
    await store.set("k", 1, if_absent=True)
    with pytest.raises(StoreConflictError):
        await store.set("k", 2, if_absent=True)
    assert await store.get("k") == 1


@pytest.mark.parametrize("count", [2, 50])
async def test_deleting_and_writing_does_not_disturb_neighbours(store, count):
    await store.set_many({f"{number}": number for number in range(count)})
    await store.delete(*[f"{number}" for number in range(0, count, 2)])
    assert sorted(await store.find(), key=lambda item: item[1]) == [(f"{n}", n) for n in range(1, count, 2)]


async def test_large_values(store):
    text = "x" * 3_000_000
    await store.set("large", text)
    assert await store.get("large") == text
    await store.set("large", bytes(range(256)) * 4096)
    assert await store.get("large") == bytes(range(256)) * 4096


# --- the dict-like face of Store ---------------------------------------------------------------------------


@pytest.mark.requires("mapping")
def test_dict_like_use(mapping):
    mapping["k"] = {"a": 1}
    mapping["none"] = None
    assert mapping["k"] == {"a": 1}
    assert mapping["none"] is None
    assert "k" in mapping
    assert "none" in mapping
    assert "absent" not in mapping
    assert len(mapping) == 2
    assert list(mapping) == ["k", "none"]
    del mapping["k"]
    assert "k" not in mapping
    assert len(mapping) == 1
    with pytest.raises(KeyError):
        mapping["k"]
    with pytest.raises(KeyError):
        del mapping["k"]
    del mapping["none"]
    assert len(mapping) == 0
    assert list(mapping) == []


@pytest.mark.requires("mapping")
def test_a_key_that_is_not_a_string_is_not_in_the_store(mapping):
    with pytest.raises((TypeError, StoreError, ValueError)):
        mapping[5] = 1
    assert len(mapping) == 0


@pytest.mark.requires("client")
async def test_async_iteration_or_iteration_gives_the_keys(store):
    await store.set_many({f"{number:04}": number for number in range(1_200)})
    assert await store.iterate() == [f"{number:04}" for number in range(1_200)]


@pytest.mark.requires("client")
async def test_a_frozen_store_reads_and_refuses_to_write(driver, store):
    await store.set("k", 1)
    await store.extend("s", (1, 1))
    await store.apply("e", {"a": 1})
    frozen = await driver.open(store.namespace, frozen=True, like=store)
    assert await frozen.get("k") == 1
    assert await frozen.range("s") == [(1, 1)]
    assert await frozen.current("e") == {"a": 1}
    for write in (
        lambda: frozen.set("k", 2),
        lambda: frozen.set_many({"k": 2}),
        lambda: frozen.delete("k"),
        lambda: frozen.extend("s", (2, 2)),
        lambda: frozen.remove("s"),
        lambda: frozen.apply("e", {"a": (operator.add, 1)}),
        lambda: frozen.prune("e"),
        lambda: frozen.discard(),
    ):
        with pytest.raises(FrozenStoreError):
            await write()
    assert await store.find() == [("k", 1)]
    assert await store.range("s") == [(1, 1)]
    assert await store.current("e") == {"a": 1}
