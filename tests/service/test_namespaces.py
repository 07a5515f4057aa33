from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rstore.core.encodings import Encoding, Value
from rstore.core.globs import compile_glob
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.engine import Engine
from rstored.engine.model import NamespaceInfo, NamespacePolicy
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

OPEN, SEALED = NamespacePolicy(), NamespacePolicy(sealed_only=True)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/store.db")
    engine = Engine(backend)
    yield engine
    await engine.stop()
    await backend.close()


async def put(engine: Engine, namespace: str, key: str) -> None:
    value = Value(Encoding.SEALED, b"x")
    await engine.kv.put(namespace, key, value=value, media_type="application/vnd.rstore.sealed")


async def test_create_is_idempotent_and_changes_the_policy_only_if_one_is_given(engine: Engine) -> None:
    assert await engine.namespaces.create("ns")
    assert not await engine.namespaces.create("ns")
    assert (await engine.namespaces.describe("ns")).policy == OPEN
    assert not await engine.namespaces.create("ns", SEALED)
    assert not await engine.namespaces.create("ns")
    assert (await engine.namespaces.describe("ns")).policy == SEALED
    assert not await engine.namespaces.create("ns", OPEN)
    assert (await engine.namespaces.describe("ns")).policy == OPEN
    assert await engine.namespaces.create("sealed", SEALED)
    assert (await engine.namespaces.describe("sealed")).policy == SEALED


async def test_describe_counts_what_is_there(engine: Engine) -> None:
    with pytest.raises(Problem) as caught:
        await engine.namespaces.describe("ns")
    assert caught.value.code == "namespace-not-found"
    for key in "abc":
        await put(engine, "ns", key)
    await put(engine, "other", "d")
    assert await engine.namespaces.describe("ns") == NamespaceInfo("ns", OPEN, 3, 0, 0)


async def test_discard_takes_everything_and_the_policy(engine: Engine) -> None:
    await engine.namespaces.create("ns", SEALED)
    for namespace in ("ns", "other"):
        await put(engine, namespace, "k")
    assert await engine.namespaces.discard("ns")
    assert not await engine.namespaces.discard("ns")
    assert await engine.kv.get("ns", "k") is None
    assert await engine.kv.get("other", "k") is not None
    await engine.kv.put("ns", "plain", value=Value(Encoding.JSON, b"1"), media_type="application/json")
    assert await engine.namespaces.describe("ns") == NamespaceInfo("ns", OPEN, 1, 0, 0)


async def test_list(engine: Engine) -> None:
    for name in ("team-b", "team-a", "x", "Z"):
        await engine.namespaces.create(name, SEALED if name == "x" else None)
    assert await engine.namespaces.list() == ([("Z", OPEN), ("team-a", OPEN), ("team-b", OPEN), ("x", SEALED)], None)
    assert await engine.namespaces.list(limit=2) == ([("Z", OPEN), ("team-a", OPEN)], "team-a")
    assert await engine.namespaces.list(after="team-a", limit=2) == ([("team-b", OPEN), ("x", SEALED)], None)
    assert [name for name, _ in (await engine.namespaces.list(match="*-?")).items] == ["team-a", "team-b"]
    assert [name for name, _ in (await engine.namespaces.list(prefix="team-")).items] == ["team-a", "team-b"]
    only = await engine.namespaces.list(within=[compile_glob("x")])
    assert [name for name, _ in only.items] == ["x"]


async def test_reading_creates_no_namespace(engine: Engine) -> None:
    assert await engine.kv.get("ns", "k") is None
    assert not await engine.kv.delete("ns", "k")
    assert await engine.kv.list("ns") == ([], None)
    assert (await engine.namespaces.list()).items == []
