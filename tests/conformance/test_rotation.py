"""Rotation of keys while others read and write: on every backend, blocking and awaited."""

from __future__ import annotations

import asyncio
import operator
import random

import pytest

import rstore
from rstore.sealing import Sealer

pytestmark = [pytest.mark.anyio, pytest.mark.requires("sealing", "sealed")]


@pytest.fixture
def new_key():
    return rstore.generate_key()


async def everything(store):
    """All that a store reads."""
    return (
        await store.find(),
        {key: await store.range(key) for key in await store.timeseries()},
        {
            key: (await store.current(key, withtimestamp=True), await store.events(key))
            for key in await store.eventsources()
        },
    )


async def fill(store):
    await store.set_many({f"k{number}": {"number": number} for number in range(30)})
    await store.set("brief", "x", ttl=3600)
    await store.set("odd", {1: (2, 3)})
    await store.extend("s", *[(t, t * 0.5) for t in range(300)])
    await store.extend("mixed", (-5, "a"), (0, None), (7, b"\xff"), (2**63 - 1, (1, 2)), (-(2**63), 1))
    await store.apply("e", {f"item{number}": number for number in range(20)}, 1000)
    for number in range(10):
        await store.apply("e", {f"item{number}": (operator.add, 5), f"item{number + 10}": (operator.neg,)})
    await store.apply("e", {"item3": (operator.delitem,), "item4": "anew"})
    await store.apply("e", {"item3": 3}, 900)


async def test_a_rotation_changes_the_key_and_nothing_else(driver, store, new_key, namespace):
    await fill(store)
    before, expiry = await everything(store), (await store.entry("brief")).expires_ms
    rotating = await driver.open(namespace, key=[new_key, store.key])
    old_id, new_id = Sealer(store.key).key_id, Sealer(new_key).key_id
    total = 32 + 305 + 43
    told = []
    checked = await rotating.rotate(check=True)
    assert (checked.stale, checked.resealed, checked.keys, checked.complete) == (total, 0, {old_id: total}, False)
    assert await everything(store) == before
    done = await rotating.rotate(progress=lambda rotation: told.append(sum(rotation.done.values())))
    assert (done.resealed, done.current, done.failed, done.complete) == (total, 0, 0, True)
    assert done.done == done.total == {"kv": 32, "ts": 305, "es": 43}
    assert told == sorted(told)
    assert told[-1] == total
    only_new = await driver.open(namespace, key=new_key)
    assert await everything(only_new) == before
    assert (await only_new.entry("brief")).expires_ms == expiry
    again = await only_new.rotate()
    assert (again.resealed, again.current, again.keys) == (0, total, {new_id: total})
    with pytest.raises(rstore.StoreDecryptionError):
        await store.get("k1")
    # The sequence goes on where it was.
    assert (await only_new.apply("e", {"item0": (operator.sub, 5)}))["item0"] == 0


async def test_a_rotation_loses_nothing_of_those_who_write_meanwhile(driver, store, new_key, namespace):
    """One writer has the new key first, one still the old one; both change, add and delete what is being rotated."""
    await fill(store)
    pairs = dict(await store.find())
    points = dict(await store.range("s"))
    counts = await store.current("e")
    rotating = await driver.open(namespace, key=[new_key, store.key])
    done = False

    async def write(number, keys):
        writer = await driver.open(namespace, key=keys)
        chance = random.Random(number)
        while not done:
            name, t = f"k{chance.randrange(15) * 2 + number}", chance.randrange(150) * 2 + number
            if chance.random() < 0.3:
                await writer.delete(name)
                pairs.pop(name, None)
                await writer.remove("s", start=t, end=t)
                points.pop(t, None)
            else:
                pairs[name] = chance.random()
                await writer.set(name, pairs[name])
                points[t] = chance.random()
                await writer.extend("s", (t, points[t]))
            item = f"item{number}"
            counts[item] += 1
            assert (await writer.apply("e", {item: (operator.add, 1)}))[item] == counts[item]

    async def rotate():
        nonlocal done
        for _ in range(3):
            found = await rotating.rotate()
            assert not found.failed, found.unrotated
        done = True

    writers = [write(0, [new_key, store.key]), write(1, [store.key, new_key])]
    await asyncio.wait_for(asyncio.gather(rotate(), *writers), 60)
    assert (await rotating.rotate()).complete
    only_new = await driver.open(namespace, key=new_key)
    assert dict(await only_new.find()) == pairs
    assert dict(await only_new.range("s")) == points
    assert await only_new.current("e") == counts
    assert (await only_new.rotate(check=True)).complete
