from __future__ import annotations

import asyncio
import dataclasses
import math
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rstore.core.encodings import Encoding, Value
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.kv import TTL_SECONDS_MAX, KeyValues
from rstored.engine.maintenance import Maintenance
from rstored.engine.model import (
    ANY,
    KEEP,
    BatchDelete,
    BatchGet,
    BatchSet,
    Condition,
    Entry,
    Expiry,
    NamespacePolicy,
    PutResult,
)
from rstored.engine.namespaces import Namespaces
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

ABSENT = Condition(none_match=("*",))
PRESENT = Condition(match=("*",))


def json_value(text: str) -> Value:
    return Value(Encoding.JSON, text.encode())


ONE, TWO = json_value("1"), json_value("2")


class Clock:
    """POSIX milliseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@dataclasses.dataclass
class Engine:
    storage: Storage
    clock: Clock
    kv: KeyValues
    namespaces: Namespaces

    async def put(self, key: str, value: Value = ONE, **options: Any) -> PutResult:
        media_type = options.pop("media_type", "application/json")
        return await self.kv.put("ns", key, value=value, media_type=media_type, **options)


@pytest.fixture
def limits() -> Limits:
    return Limits(value_bytes_max=1000, body_bytes_max=3000, batch_parts_max=20, page_bytes_max=100, nesting_max=5)


@pytest.fixture
async def engine(tmp_path: Path, limits: Limits) -> AsyncIterator[Engine]:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/store.db")
    storage, clock = Storage(backend), Clock()
    yield Engine(storage, clock, KeyValues(storage, limits, clock), Namespaces(storage, limits, clock))
    await backend.close()


# --- get, put, delete --------------------------------------------------------------------------------------


async def test_what_was_put_is_what_is_got(engine: Engine) -> None:
    assert await engine.kv.get("ns", "k") is None
    for value, media_type in [
        (json_value("null"), "application/json"),
        (Value(Encoding.BYTES, b"\x00\xff"), "image/png"),
        (Value(Encoding.BYTES, b""), "text/plain; charset=utf-8"),
        (Value(Encoding.PICKLE, b"p"), "application/vnd.rstore.pickle"),
        (Value(Encoding.SEALED, b"s" * 1000), "application/vnd.rstore.sealed"),
    ]:
        result = await engine.put("k", value, media_type=media_type)
        assert await engine.kv.get("ns", "k") == Entry(value, media_type, result.etag, None)


async def test_put_says_whether_the_key_is_new_and_delete_whether_it_was_there(engine: Engine) -> None:
    assert (await engine.put("k")).created
    assert not (await engine.put("k")).created
    assert await engine.kv.delete("ns", "k")
    assert not await engine.kv.delete("ns", "k")
    assert (await engine.put("k")).created
    assert await engine.kv.count("ns") == 1


async def test_the_etag_is_a_hash_of_media_type_and_content(engine: Engine) -> None:
    tags = [
        (await engine.put(key, Value(Encoding.BYTES, data), media_type=media_type)).etag
        for key, data, media_type in [("a", b"x", "a/b"), ("b", b"x", "a/b"), ("a", b"y", "a/b"), ("a", b"x", "a/c")]
    ]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 3
    assert all(len(tag) == 22 and tag.isascii() and '"' not in tag for tag in tags)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (json_value(""), "invalid-value"),
        (json_value("{"), "invalid-value"),
        (json_value("NaN"), "invalid-value"),
        (Value(Encoding.JSON, b'"\xff"'), "invalid-value"),
        (json_value("[" * 6 + "]" * 6), "nesting-too-deep"),
        (json_value("1" * 1001), "value-too-large"),
        (Value(Encoding.BYTES, b"x" * 1001), "value-too-large"),
    ],
)
async def test_values_that_are_refused(engine: Engine, value: Value, code: str) -> None:
    with pytest.raises(Problem) as caught:
        await engine.put("k", value)
    assert caught.value.code == code
    with pytest.raises(Problem) as caught:
        await engine.kv.batch("ns", gets=[], sets=[BatchSet("a", ONE, "a/b"), BatchSet("k", value, "a/b")], deletes=[])
    assert caught.value.code == code
    assert caught.value.members["pointer"] == "/set/1"
    assert await engine.kv.count("ns") == 0
    assert (await engine.namespaces.list()).items == []


async def test_values_at_the_limit_are_taken(engine: Engine) -> None:
    await engine.put("k", Value(Encoding.BYTES, b"x" * 1000))
    await engine.put("k", json_value("[" * 5 + "]" * 5))
    await engine.put("k", json_value('"[[[[[[[["'))


async def test_a_namespace_that_takes_only_sealed_values(engine: Engine) -> None:
    await engine.put("old", ONE)
    await engine.namespaces.create("ns", NamespacePolicy(sealed_only=True))
    with pytest.raises(Problem) as caught:
        await engine.put("k", ONE)
    assert caught.value.code == "sealed-only"
    sealed = Value(Encoding.SEALED, b"x")
    await engine.put("k", sealed)
    with pytest.raises(Problem) as caught:
        await engine.kv.batch("ns", gets=[], sets=[BatchSet("a", sealed, "x/y"), BatchSet("b", TWO, "x/y")], deletes=[])
    assert (caught.value.code, caught.value.members) == ("sealed-only", {"pointer": "/set/1"})
    assert await engine.kv.get("ns", "a") is None
    assert await engine.kv.delete("ns", "old")


# --- conditions --------------------------------------------------------------------------------------------


async def test_conditions(engine: Engine) -> None:
    async def refused(**condition: tuple[str, ...]) -> None:
        with pytest.raises(Problem) as caught:
            await engine.put("k", json_value("9"), condition=Condition(**condition))
        assert caught.value.code == "precondition-failed"
        assert (await engine.kv.get("ns", "k") or Entry(ONE, "", "", None)).value != json_value("9")

    await refused(match=("*",))
    await refused(match=("x",))
    one = await engine.put("k", ONE, condition=ABSENT)
    assert one.created
    await refused(none_match=("*",))
    await refused(none_match=("x", one.etag))
    await refused(match=("x",))
    await refused(match=(one.etag,), none_match=("*",))
    two = await engine.put("k", TWO, condition=Condition(match=("x", one.etag)))
    await refused(match=(one.etag,))
    await engine.put("k", ONE, condition=Condition(match=("*",), none_match=(one.etag,)))
    assert two.etag != one.etag


async def test_a_conditional_put_can_be_sent_again(engine: Engine) -> None:
    first = await engine.put("k", ONE, condition=ABSENT, ttl_seconds=10, write_id="w1")
    engine.clock.now += 1
    again = await engine.put("k", ONE, condition=ABSENT, ttl_seconds=10, write_id="w1")
    assert again == first
    entry = await engine.kv.get("ns", "k")
    assert entry is not None
    assert entry.expires_ms == engine.clock.now + 9_999
    match = Condition(match=(first.etag,))
    second = await engine.put("k", TWO, condition=match, write_id="w2")
    assert await engine.put("k", TWO, condition=match, write_id="w2") == second


async def test_equal_content_of_another_writer_does_not_satisfy_a_condition(engine: Engine) -> None:
    first = await engine.put("k", ONE, condition=ABSENT, write_id="w1")
    match = Condition(match=(first.etag,))
    await engine.put("k", TWO, condition=match, write_id="w2")
    for number, condition in enumerate((ABSENT, match), 3):
        for write_id in (f"w{number}", None, None):
            with pytest.raises(Problem) as caught:
                await engine.put("k", TWO, condition=condition, write_id=write_id)
            assert caught.value.code == "precondition-failed"


async def test_conditional_deletes(engine: Engine) -> None:
    etag = (await engine.put("k")).etag
    for condition in (Condition(match=("x",)), Condition(none_match=("*",)), Condition(none_match=(etag,))):
        with pytest.raises(Problem) as caught:
            await engine.kv.delete("ns", "k", condition=condition)
        assert caught.value.code == "precondition-failed"
    assert await engine.kv.delete("ns", "k", condition=Condition(match=(etag,)))
    with pytest.raises(Problem):
        await engine.kv.delete("ns", "k", condition=PRESENT)


async def test_of_many_that_swap_at_once_one_wins(engine: Engine) -> None:
    etag = (await engine.put("k", ONE)).etag
    swaps = [engine.put("k", json_value(str(n)), condition=Condition(match=(etag,))) for n in range(10, 40)]
    results = await asyncio.gather(*swaps, return_exceptions=True)
    assert sum(isinstance(result, PutResult) for result in results) == 1
    assert {result.code for result in results if isinstance(result, Problem)} == {"precondition-failed"}


# --- expiry ------------------------------------------------------------------------------------------------


async def test_an_expired_entry_is_absent_for_everything(engine: Engine) -> None:
    etag = (await engine.put("k", ttl_seconds=1.5)).etag
    await engine.put("other")
    engine.clock.now += 1499
    assert await engine.kv.get("ns", "k") is not None
    engine.clock.now += 1
    assert await engine.kv.get("ns", "k") is None
    assert await engine.kv.count("ns") == 1
    assert [key for key, _ in (await engine.kv.list("ns")).items] == ["other"]
    assert (await engine.kv.batch("ns", gets=[BatchGet("k")], sets=[], deletes=[])).entries == []
    for condition in (PRESENT, Condition(match=(etag,))):
        with pytest.raises(Problem):
            await engine.put("k", TWO, condition=condition)
        with pytest.raises(Problem):
            await engine.kv.delete("ns", "k", condition=condition)
    assert (await engine.put("k", TWO, condition=ABSENT)).created
    entry = await engine.kv.get("ns", "k")
    assert entry is not None
    assert entry.expires_ms is None


async def test_an_expired_entry_is_not_deleted_but_goes(engine: Engine) -> None:
    await engine.put("k", ttl_seconds=1)
    engine.clock.now += 1000
    assert not await engine.kv.delete("ns", "k")


async def test_a_put_without_a_ttl_keeps_the_expiry(engine: Engine) -> None:
    async def expiry() -> int | None:
        entry = await engine.kv.get("ns", "k")
        assert entry is not None
        return entry.expires_ms

    await engine.put("k", ttl_seconds=10)
    end = engine.clock.now + 10_000
    engine.clock.now += 5
    await engine.put("k", TWO)
    assert await expiry() == end
    await engine.put("k", TWO, ttl_seconds=0.0001)
    assert await expiry() == engine.clock.now + 1
    await engine.put("k", TWO, ttl_seconds=Expiry.NEVER)
    assert await expiry() is None


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, TTL_SECONDS_MAX * 1.01])
async def test_a_ttl_that_is_not_a_time_to_live_is_refused(engine: Engine, ttl: float) -> None:
    with pytest.raises(Problem) as caught:
        await engine.put("k", ttl_seconds=ttl)
    assert caught.value.code == "invalid-parameter"
    assert (await engine.put("k", ttl_seconds=TTL_SECONDS_MAX)).created


# --- list --------------------------------------------------------------------------------------------------


async def test_list(engine: Engine) -> None:
    for n in range(30):
        await engine.put(f"k{n:02}", json_value(f'"{n:08}"'), ttl_seconds=n + 1)
    engine.clock.now += 5000
    page = await engine.kv.list("ns", limit=3)
    assert [key for key, _ in page.items] == ["k05", "k06", "k07"]
    assert page.cursor == "k07"
    assert page.items[0][1] == (
        Value(Encoding.JSON, b""),
        "application/json",
        page.items[0][1].etag,
        engine.clock.now + 1000,
    )
    page = await engine.kv.list("ns", after="k07", values=True)
    assert [key for key, _ in page.items] == [f"k{n:02}" for n in range(8, 18)]
    assert page.items[0][1].value == json_value('"00000008"')
    page = await engine.kv.list("ns", match="k?5", values=True)
    assert [(key, entry.value.data) for key, entry in page.items] == [(f"k{n:02}", b'"%08d"' % n) for n in (5, 15, 25)]
    assert (await engine.kv.list("ns", prefix="k2", match="*9")).items[0][0] == "k29"
    assert await engine.kv.list("none") == ([], None)


# --- batch -------------------------------------------------------------------------------------------------


async def test_a_batch_does_all_and_its_gets_see_the_state_before(engine: Engine) -> None:
    for key in ("a", "b", "c"):
        await engine.put(key)
    result = await engine.kv.batch(
        "ns",
        gets=[BatchGet("b"), BatchGet("none"), BatchGet("a"), BatchGet("b")],
        sets=[BatchSet("b", TWO, "application/json"), BatchSet("new", TWO, "application/json", 5)],
        deletes=[BatchDelete("c"), BatchDelete("none")],
    )
    assert [(key, entry.value) for key, entry in result.entries] == [("b", ONE), ("a", ONE), ("b", ONE)]
    assert [(key, put.created) for key, put in result.puts] == [("b", False), ("new", True)]
    assert result.deleted == ["c"]
    entries = dict((await engine.kv.list("ns", values=True)).items)
    assert {key: entry.value for key, entry in entries.items()} == {"a": ONE, "b": TWO, "new": TWO}
    assert entries["new"].expires_ms == engine.clock.now + 5000
    assert {key: entry.etag for key, entry in entries.items() if key != "a"} == {k: put.etag for k, put in result.puts}


@pytest.mark.parametrize(
    ("sets", "deletes", "code", "pointer"),
    [
        ([BatchSet("new", ONE, "x/y"), BatchSet("a", TWO, "x/y", KEEP, ABSENT)], [], "precondition-failed", "/set/1"),
        (
            [BatchSet("new", ONE, "x/y")],
            [BatchDelete("a"), BatchDelete("b", PRESENT)],
            "precondition-failed",
            "/delete/1",
        ),
        ([BatchSet("x", ONE, "x/y"), BatchSet("x", ONE, "x/y")], [], "invalid-body", "/set/1"),
        ([BatchSet("x", ONE, "x/y")], [BatchDelete("x")], "invalid-body", "/delete/0"),
        ([BatchSet("x", ONE, "x/y", -1.0)], [], "invalid-parameter", "/set/0"),
        ([BatchSet("x", json_value("{"), "x/y")], [], "invalid-value", "/set/0"),
    ],
)
async def test_one_failing_part_fails_the_whole_batch(
    engine: Engine, sets: list[BatchSet], deletes: list[BatchDelete], code: str, pointer: str
) -> None:
    await engine.put("a")
    with pytest.raises(Problem) as caught:
        await engine.kv.batch("ns", gets=[], sets=sets, deletes=deletes)
    assert caught.value.code == code
    assert caught.value.members["pointer"] == pointer
    assert [key for key, _ in (await engine.kv.list("ns")).items] == ["a"]


async def test_a_conditional_batch_can_be_sent_again(engine: Engine) -> None:
    await engine.put("c")
    parts: dict[str, Any] = {
        "gets": [BatchGet("c")],
        "sets": [BatchSet("a", ONE, "x/y", 5, ABSENT), BatchSet("b", TWO, "x/y", KEEP, ABSENT)],
        "deletes": [BatchDelete("c")],
    }
    first = await engine.kv.batch("ns", **parts, write_id="w")
    assert await engine.kv.batch("ns", **parts, write_id="w") == first
    with pytest.raises(Problem):
        await engine.kv.batch("ns", **parts, write_id="other")


async def test_batches_are_bounded(engine: Engine) -> None:
    gets = [BatchGet(str(n)) for n in range(20)]
    await engine.kv.batch("ns", gets=gets, sets=[], deletes=[])
    with pytest.raises(Problem) as caught:
        await engine.kv.batch("ns", gets=gets, sets=[BatchSet("x", ONE, "x/y")], deletes=[])
    assert caught.value.code == "batch-too-large"
    for n in range(4):
        await engine.put(str(n), Value(Encoding.BYTES, b"x" * 1000))
    three = await engine.kv.batch("ns", gets=gets[:3], sets=[], deletes=[])
    assert [entry.value.data for _, entry in three.entries] == [b"x" * 1000] * 3
    # Much more than its share of what all may have.
    one = await engine.kv.batch("ns", gets=[gets[3], *gets[4:]], sets=[], deletes=[])
    assert [entry.value.data for _, entry in one.entries] == [b"x" * 1000]
    for sets in ([], [BatchSet("x", ONE, "x/y")]):
        with pytest.raises(Problem) as caught:
            await engine.kv.batch("ns", gets=gets[:4], sets=sets, deletes=[])
        assert caught.value.code == "answer-too-large"


# --- against a model ---------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", "c/1"])
VALUES = st.sampled_from([ONE, TWO, json_value("[1]")])
MEDIA_TYPES = st.sampled_from(["application/json", "application/x-j+json"])
TTLS: st.SearchStrategy[float | Expiry] = st.sampled_from([KEEP, Expiry.NEVER, 0.5, 1.0, 3.0])


@dataclasses.dataclass
class Stored:
    value: Value
    media_type: str
    expires_ms: int | None
    etag: str


class KeyValueMachine(RuleBasedStateMachine):
    """The engine on SQLite against a dict, with a clock that the machine turns."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model: dict[str, Stored] = {}
        # Every ETag there ever was, and those of unconditional writes by content.
        self.etags: list[str] = []
        self.etag_of: dict[tuple[Value, str], str] = {}
        self.backend = self.runner.run(self._open())
        self.storage = Storage(self.backend)
        self.kv = KeyValues(self.storage, Limits(), self.clock)

    async def _open(self) -> SQLiteBackend:
        return await SQLiteBackend.open(f"sqlite:///{self.folder}/store.db")

    def teardown(self) -> None:
        self.runner.run(self.backend.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, work: Any) -> Any:
        """What the work returns, or code and pointer of the problem that it raises."""
        try:
            return self.runner.run(work)
        except Problem as problem:
            return problem.code, problem.members.get("pointer")

    def present(self) -> dict[str, Stored]:
        return {k: s for k, s in self.model.items() if s.expires_ms is None or s.expires_ms > self.clock.now}

    def condition(self, data: st.DataObject) -> Condition:
        tags = st.sampled_from(["*", "unknown", *self.etags])
        return data.draw(
            st.just(ANY)
            | st.builds(lambda tag: Condition(match=(tag,)), tags)
            | st.builds(lambda tag: Condition(none_match=(tag,)), tags)
        )

    def holds(self, key: str, condition: Condition) -> bool:
        stored = self.present().get(key)
        named = {"*", stored.etag} if stored else set()
        if condition.match is not None and not named.intersection(condition.match):
            return False
        return condition.none_match is None or not named.intersection(condition.none_match)

    def put_in_model(self, part: BatchSet) -> tuple[Stored, bool] | None:
        """What a put should come to: what is stored then, but for its ETag, and created; None if it is refused."""
        stored = self.present().get(part.key)
        if not self.holds(part.key, part.condition):
            return None
        expires = None
        if part.ttl_seconds is KEEP:
            expires = stored.expires_ms if stored else None
        elif not isinstance(part.ttl_seconds, Expiry):
            expires = self.clock.now + int(part.ttl_seconds * 1000)
        return Stored(part.value, part.media_type, expires, ""), stored is None

    def stored(self, part: BatchSet, wanted: Stored, etag: str) -> None:
        """Take what a put stored into the model. Content alone makes the ETag, unless the put had a condition."""
        if part.condition == ANY:
            assert self.etag_of.setdefault((part.value, part.media_type), etag) == etag
        else:
            assert etag not in self.etags
        self.etags.append(etag)
        self.model[part.key] = dataclasses.replace(wanted, etag=etag)

    @rule(key=KEYS, value=VALUES, media_type=MEDIA_TYPES, ttl=TTLS, data=st.data())
    def put(self, key: str, value: Value, media_type: str, ttl: float | Expiry, data: st.DataObject) -> None:
        part = BatchSet(key, value, media_type, ttl, self.condition(data))
        wanted = self.put_in_model(part)
        result = self.run(
            self.kv.put("ns", key, value=value, media_type=media_type, ttl_seconds=ttl, condition=part.condition)
        )
        if wanted is None:
            assert result == ("precondition-failed", None)
            return
        assert result.created is wanted[1]
        self.stored(part, wanted[0], result.etag)

    @rule(key=KEYS, data=st.data())
    def delete(self, key: str, data: st.DataObject) -> None:
        condition = self.condition(data)
        holds = self.holds(key, condition)
        result = self.run(self.kv.delete("ns", key, condition=condition))
        assert result == ((key in self.present()) if holds else ("precondition-failed", None))
        if holds:
            self.model.pop(key, None)

    @rule(keys=st.lists(KEYS, unique=True, min_size=1), values=st.data())
    def batch(self, keys: list[str], values: st.DataObject) -> None:
        split = values.draw(st.integers(0, len(keys)))
        sets = [
            BatchSet(key, values.draw(VALUES), values.draw(MEDIA_TYPES), values.draw(TTLS), self.condition(values))
            for key in keys[:split]
        ]
        deletes = [BatchDelete(key, self.condition(values)) for key in keys[split:]]
        gets = [BatchGet(key) for key in values.draw(st.lists(KEYS))]
        before = self.present()
        wanted = [self.put_in_model(part) for part in sets]
        refused = [f"/set/{i}" for i, put in enumerate(wanted) if put is None]
        refused += [f"/delete/{i}" for i, part in enumerate(deletes) if not self.holds(part.key, part.condition)]
        result = self.run(self.kv.batch("ns", gets=gets, sets=sets, deletes=deletes))
        if refused:
            assert result == ("precondition-failed", refused[0])
            return
        assert [(k, e.value) for k, e in result.entries] == [
            (get.key, before[get.key].value) for get in gets if get.key in before
        ]
        assert result.deleted == [part.key for part in deletes if part.key in before]
        for part, put, (key, found) in zip(sets, wanted, result.puts, strict=True):
            assert put is not None
            assert (key, found.created) == (part.key, put[1])
            self.stored(part, put[0], found.etag)
        for gone in deletes:
            self.model.pop(gone.key, None)

    @rule(milliseconds=st.sampled_from([1, 499, 500, 1000, 5000]))
    def wait(self, milliseconds: int) -> None:
        self.clock.now += milliseconds

    @rule()
    def sweep(self) -> None:
        self.runner.run(Maintenance(self.storage, self.clock).sweep())

    @rule()
    def restart(self) -> None:
        self.runner.run(self.backend.close())
        self.backend = self.runner.run(self._open())
        self.storage = Storage(self.backend)
        self.kv = KeyValues(self.storage, Limits(), self.clock)

    @invariant()
    def all_reads_agree_with_the_model(self) -> None:
        wanted = {key: Entry(s.value, s.media_type, s.etag, s.expires_ms) for key, s in self.present().items()}
        listed = self.runner.run(self.kv.list("ns", values=True))
        assert listed == (sorted(wanted.items()), None)
        assert self.runner.run(self.kv.count("ns")) == len(wanted)
        for key in ("a", "b", "c", "c/1"):
            assert self.runner.run(self.kv.get("ns", key)) == wanted.get(key)


TestKeyValueMachine = KeyValueMachine.TestCase
TestKeyValueMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
