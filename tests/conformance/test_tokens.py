"""Tokens in the engine, the same on every backend; each test has a store of its own, as a token closes the whole."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.backends import BACKENDS

from rstored.backends import backend_class
from rstored.engine.engine import Engine
from rstored.engine.model import Access, NamespacePolicy
from rstored.problems import Problem

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that a test turns on, in milliseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@contextlib.asynccontextmanager
async def opened(dsn: str, clock: Clock) -> AsyncIterator[Engine]:
    backend = await backend_class(dsn).open(dsn)
    engine = Engine(backend, clock=clock)
    try:
        yield engine
    finally:
        await engine.stop()
        await backend.close()


@pytest.fixture(params=[pytest.param(case, id=name) for name, case in BACKENDS.items()])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if reason := request.param.missing():
        pytest.skip(reason)
    return request.param.fresh(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(dsn: str, clock: Clock) -> AsyncIterator[Engine]:
    async with opened(dsn, clock) as engine:
        yield engine


async def problem(code: str, call: Callable[[], Awaitable[object]]) -> Problem:
    with pytest.raises(Problem) as caught:
        await call()
    assert caught.value.code == code
    return caught.value


async def test_a_token_from_its_making_to_its_end(engine, clock):
    assert not await engine.tokens.exist()
    assert (await engine.tokens.list()).items == []
    made = await engine.tokens.create(["team-*", "x", "x"], Access.WRITE, label="ingest", lifetime_seconds=60)
    assert await engine.tokens.exist()
    info = made.info
    assert info[1:] == ("ingest", ("team-*", "x"), Access.WRITE, clock.now, clock.now + 60_000)
    assert made.text.startswith(f"rst_{info.id}_")
    assert await engine.tokens.verify(made.text) == (info, clock.now + 60_000)
    assert await engine.tokens.get(info.id) == info
    assert (await engine.tokens.list()).items == [info]
    assert await engine.tokens.revoke(info.id)
    assert not await engine.tokens.revoke(info.id)
    assert await engine.tokens.verify(made.text) is None
    await problem("token-not-found", lambda: engine.tokens.get(info.id))
    await problem("token-not-found", lambda: engine.tokens.rotate(info.id))
    assert (await engine.tokens.list()).items == []
    # Revoking lets nobody in: the store stays closed.
    assert await engine.tokens.exist()


async def test_the_text_is_never_stored_nor_shown(engine):
    made = await engine.tokens.create(["*"], Access.ADMIN)
    secret = made.text.split("_", 2)[2]
    assert len(secret) == 43
    assert secret not in repr(made)
    assert secret not in repr(made.info)
    assert made.text != (await engine.tokens.create(["*"], Access.ADMIN)).text


async def test_only_the_whole_text_counts(engine):
    made = await engine.tokens.create(["*"], Access.READ)
    other = await engine.tokens.create(["*"], Access.READ)
    _, token_id, secret = made.text.split("_", 2)
    _, _, others = other.text.split("_", 2)
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for text in (
        "",
        token_id,
        f"rst_{token_id}",
        f"rst_{token_id}_",
        f"rst_{token_id}_{wrong}",
        f"rst_{token_id}_{others}",
        f"rst_{token_id}_{secret}A",
        f"rst_{token_id}_{secret}\n",
        f"RST_{token_id}_{secret}",
        f"rst_{'0' * 16}_{secret}",
        f"rst_{token_id}_{'A' * 43}",
    ):
        assert await engine.tokens.verify(text) is None, text
    assert await engine.tokens.verify(made.text)


async def test_an_expired_token_is_gone_at_once_and_then_erased(dsn, clock):
    async with opened(dsn, clock) as engine:
        made = await engine.tokens.create(["*"], Access.READ, lifetime_seconds=0.5)
        clock.now += 499
        assert await engine.tokens.verify(made.text)
        clock.now += 1
        assert await engine.tokens.verify(made.text) is None
        assert (await engine.tokens.list()).items == []
        await problem("token-not-found", lambda: engine.tokens.get(made.info.id))
        await problem("token-not-found", lambda: engine.tokens.rotate(made.info.id))
        await engine.maintenance.sweep()
        clock.now -= 1000
        assert await engine.tokens.verify(made.text) is None
        assert await engine.tokens.exist()


async def test_rotation_with_and_without_grace(engine, clock):
    first = await engine.tokens.create(["*"], Access.READ, lifetime_seconds=3600)
    second = await engine.tokens.rotate(first.info.id)
    assert second.info == first.info
    assert await engine.tokens.verify(first.text) is None
    third = await engine.tokens.rotate(first.info.id, grace_seconds=60)
    assert await engine.tokens.verify(second.text) == (first.info, clock.now + 60_000)
    assert await engine.tokens.verify(third.text) == (first.info, first.info.expires_ms)
    fourth = await engine.tokens.rotate(first.info.id, grace_seconds=60)
    # Only the secret before the last rotation has a grace.
    assert await engine.tokens.verify(second.text) is None
    assert await engine.tokens.verify(third.text)
    clock.now += 60_000
    assert await engine.tokens.verify(third.text) is None
    assert await engine.tokens.verify(fourth.text)
    await engine.tokens.rotate(first.info.id, grace_seconds=1e9)
    # A grace is no way around the expiry.
    assert (await engine.tokens.verify(fourth.text)).until_ms == first.info.expires_ms
    assert len((await engine.tokens.list()).items) == 1


async def test_a_listing_goes_page_by_page(engine):
    made = sorted([(await engine.tokens.create(["*"], Access.READ, label=f"{n}")).info for n in range(7)])
    found, page = [], await engine.tokens.list(limit=3)
    while True:
        assert len(page.items) <= 3
        found += page.items
        if page.cursor is None:
            break
        page = await engine.tokens.list(after=page.cursor, limit=3)
    assert found == made


async def test_the_records_of_tokens_are_in_no_namespace(engine):
    await engine.namespaces.create("zz", NamespacePolicy())
    await engine.tokens.create(["*"], Access.ADMIN)
    for options in ({}, {"limit": 1}, {"match": "*"}, {"prefix": "~"}, {"match": "~tokens"}, {"after": "zz"}):
        page = await engine.namespaces.list(**options)
        names = [name for name, _ in page.items]
        while page.cursor is not None:
            assert page.cursor != "~tokens"
            page = await engine.namespaces.list(**{**options, "after": page.cursor})
            names += [name for name, _ in page.items]
        assert names == (
            ["zz"] if not {"prefix", "after"} & options.keys() and options.get("match") != "~tokens" else []
        )
    info = await engine.namespaces.describe("zz")
    assert (info.kv, info.ts, info.es) == (0, 0, 0)


WRONG: list[tuple[str, list[str], dict[str, Any]]] = [
    ("/namespaces", [], {}),
    ("/namespaces", ["a"] * 65, {}),
    ("/namespaces/1", ["a", ""], {}),
    ("/namespaces/0", ["~tokens"], {}),
    ("/namespaces/0", ["a/b"], {}),
    ("/namespaces/0", ["a" * 129], {}),
    ("/namespaces/0", ["a\n"], {}),
    ("/label", ["a"], {"label": "x" * 201}),
    ("/label", ["a"], {"label": "a\nb"}),
    ("/label", ["a"], {"label": "\udcff"}),
    ("/lifetime_seconds", ["a"], {"lifetime_seconds": 0}),
    ("/lifetime_seconds", ["a"], {"lifetime_seconds": -1}),
    ("/lifetime_seconds", ["a"], {"lifetime_seconds": 1e11}),
    ("/lifetime_seconds", ["a"], {"lifetime_seconds": float("nan")}),
]


async def test_what_no_token_can_be(engine):
    for pointer, namespaces, options in WRONG:
        found = await problem("invalid-body", lambda: engine.tokens.create(namespaces, Access.READ, **options))  # noqa: B023
        assert found.members == {"pointer": pointer}
    assert not await engine.tokens.exist()


async def test_a_grace_has_bounds_and_an_id_is_one(engine):
    made = await engine.tokens.create(["*"], Access.READ)
    for grace in (-1, 1e11, float("nan")):
        await problem("invalid-body", functools.partial(engine.tokens.rotate, made.info.id, grace_seconds=grace))
    for token_id in ("", "x", "a\0b", "~", made.info.id + "\n", "x" * 10_000):
        await problem("token-not-found", functools.partial(engine.tokens.get, token_id))
        await problem("token-not-found", functools.partial(engine.tokens.rotate, token_id))
        assert not await engine.tokens.revoke(token_id)
    assert await engine.tokens.verify(made.text)
    # What it reaches may be as much as is allowed, in the longest names.
    globs = [f"{n:03}" + "x" * 125 for n in range(64)]
    largest = await engine.tokens.create(globs, Access.READ, label="ä" * 200)
    assert (await engine.tokens.get(largest.info.id)).namespaces == tuple(globs)
