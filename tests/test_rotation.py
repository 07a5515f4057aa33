"""A rotation that is killed again and again while others write: it is run again, and nothing is lost."""

from __future__ import annotations

import operator
import os
import random
import subprocess
import sys
import threading
import time

import pytest

import rstore
from rstore import Store

PAIRS, POINTS, EVENTS = 1_200, 1_000, 300

BLOCKING = """
import sys
from rstore import Store

def tell(rotation):
    print(sum(rotation.done.values()), flush=True)

with Store(sys.argv[1], "kills", sys.stdin.read().split(), frozen=False) as store:
    assert store.rotate(progress=tell).failed == 0
"""
AWAITED = """
import asyncio, sys
from rstore import AsyncStore

def tell(rotation):
    print(sum(rotation.done.values()), flush=True)

async def main():
    async with AsyncStore(sys.argv[1], "kills", sys.stdin.read().split(), frozen=False) as store:
        assert (await store.rotate(progress=tell)).failed == 0

asyncio.run(main())
"""


class Writer(threading.Thread):
    """Changes, adds and deletes every second of what there is, and notes what the service acknowledged."""

    def __init__(self, url, number, keys):
        super().__init__()
        self.store = Store(url, "kills", keys, frozen=False)
        self.number = number
        self.pairs = {f"k{n:04}": n for n in range(number, PAIRS, 2)}
        self.points = {t: t * 0.5 for t in range(number, POINTS, 2)}
        self.items = {f"item{number}": 0}
        self.done = threading.Event()
        self.error = None
        self.writes = 0

    def run(self):
        chance = random.Random(self.number)
        try:
            with self.store as store:
                while not self.done.is_set():
                    self.write(store, chance)
        except BaseException as error:
            self.error = error

    def write(self, store, chance):
        self.writes += 1
        key = f"k{chance.randrange(PAIRS // 2) * 2 + self.number:04}"
        t = chance.randrange(POINTS // 2) * 2 + self.number
        if chance.random() < 0.4:
            store.delete(key)
            self.pairs.pop(key, None)
            store.remove("s", start=t, end=t)
            self.points.pop(t, None)
        else:
            store.set(key, self.writes)
            self.pairs[key] = self.writes
            store.extend("s", (t, self.writes))
            self.points[t] = self.writes
        (item,) = self.items
        self.items[item] += 1
        # The chain of events that each apply reads does not grow without end.
        change = (operator.add, 1) if self.writes % 10 else self.items[item]
        assert store.apply("e", {item: change})[item] == self.items[item]
        time.sleep(0.005)


def rotate(script, url, keys, kill_after):
    """Run it, and kill it once it has told that so many pages are done; True if it came to its end before that."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("RSTORE")},
        text=True,
    )
    process.stdin.write(" ".join(keys))
    process.stdin.close()
    for told, _ in enumerate(process.stdout, 1):
        if told == kill_after:
            process.kill()
    code = process.wait()
    process.stdout.close()
    assert code in (0, -9)
    return code == 0


@pytest.mark.parametrize("script", [BLOCKING, AWAITED], ids=["blocking", "awaited"])
def test_a_rotation_that_is_killed_goes_on_and_loses_nothing(serve, tmp_path, script):
    url = serve(f"sqlite:///{tmp_path}/store.db").url
    old, new = rstore.generate_key(), rstore.generate_key()
    writers = [Writer(url, 0, [new, old]), Writer(url, 1, [old, new])]
    with Store(url, "kills", old, frozen=False) as store:
        store.set_many({key: value for writer in writers for key, value in writer.pairs.items()})
        store.extend("s", *[point for writer in writers for point in writer.points.items()])
        store.apply("e", {item: value for writer in writers for item, value in writer.items.items()})
        for start in range(0, EVENTS, 100):
            store.apply("history", {f"item{number}": number for number in range(start, start + 100)})
        history = store.events("history")
    for writer in writers:
        writer.start()
    try:
        # Each run gets further than the one before; the last is left alone.
        ends = [rotate(script, url, [new, old], kill_after) for kill_after in (1, 4, 0)]
    finally:
        for writer in writers:
            writer.done.set()
        for writer in writers:
            writer.join()
    assert [writer.error for writer in writers] == [None, None]
    assert ends[-1]
    assert not all(ends[:-1]), "it was killed on its way"
    with Store(url, "kills", [new, old], frozen=False) as store:
        # One of them wrote with the old key to the end.
        assert store.rotate().complete
    with Store(url, "kills", new) as store:
        assert store.rotate(check=True).complete
        assert dict(store.find()) == writers[0].pairs | writers[1].pairs
        assert dict(store.range("s")) == writers[0].points | writers[1].points
        assert store.current("e") == writers[0].items | writers[1].items
        assert len(store.events("e")) == 2 + sum(writer.writes for writer in writers)
        assert store.events("history") == history
