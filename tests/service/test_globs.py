from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.globs import compile_glob
from rstored.backends.abc import Commit, Head, Kind, Place, PutHead, namespace_place
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.listing import SCAN_MAX, list_page

pytestmark = pytest.mark.anyio

TEXT = st.text("ab*?[.\n", max_size=8)


def reference(pattern: str, key: str) -> bool:
    expression = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(expression, key, re.DOTALL) is not None


def matches(pattern: str, key: str) -> bool:
    return compile_glob(pattern).matches(key)


@given(TEXT, TEXT)
def test_a_glob_matches_what_the_regular_expression_does(pattern: str, key: str) -> None:
    assert matches(pattern, key) == reference(pattern, key)


@given(st.data())
def test_a_glob_matches_what_it_was_made_of(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.one_of(st.just("*"), st.just("?"), st.text("abc", max_size=3)), max_size=7))
    fill = {"*": st.text("ab\n", max_size=4), "?": st.sampled_from("ab\n*?")}
    key = "".join(data.draw(fill[part]) if part in fill else part for part in parts)
    assert matches("".join(parts), key)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a", ["a"], ["ab", "ba", ""]),
        ("*", ["", "a", "a\nb"], []),
        ("a?", ["a?", "ab", "a😀", "a\n"], ["a", "abc"]),
        ("a*b", ["ab", "axb", "ab\nb"], ["abc", "a", "b"]),
        ("ab*ba", ["abba", "abxba"], ["aba"]),
        ("[a]", ["[a]"], ["a"]),
        ("?*?", ["ab", "abc"], ["a"]),
    ],
)
def test_examples(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [key for key in yes + no if matches(pattern, key)] == yes


def test_the_prefix_is_what_stands_before_the_first_wildcard() -> None:
    assert compile_glob("log/2?/*").prefix == "log/2"
    assert compile_glob("log/*")[:3] == ("log/", False, None)
    assert compile_glob("log/**")[:3] == ("log/", False, None)
    assert compile_glob("log")[:3] == ("log", True, None)


@pytest.mark.parametrize("pattern", ["*a" * 100 + "b", "*" + "a" * 250 + "?b", "*?" * 200 + "b", "*a?" * 80 + "b"])
def test_hard_patterns_take_little_time(pattern: str) -> None:
    match = compile_glob(pattern).predicate
    assert match is not None
    started = time.thread_time()
    for _ in range(100):
        assert not match("a" * 512)
    assert time.thread_time() - started < 1


# --- list_page ---------------------------------------------------------------------------------------------


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/store.db")
    yield Storage(backend)
    await backend.close()


async def fill(storage: Storage, heads: dict[str, Head]) -> None:
    places = {Place("ns", Kind.KV, key): head for key, head in heads.items()}

    def plan(_):
        return Commit([PutHead(namespace_place("ns"), Head(b"")), *map(PutHead, places, places.values())], None)
        yield

    await storage.update(tuple(places), plan)


async def test_pages_together_are_the_whole(storage: Storage) -> None:
    heads = {f"{a}{b}{c}": Head(b"m", a.encode() * 3) for a in "abc" for b in "xyz" for c in "12345"}
    await fill(storage, heads)
    for match, prefix, values in [
        (None, "", False),
        (None, "b", True),
        ("a*", "", True),
        ("*x?", "", True),
        ("?y*", "b", False),
        ("b*1", "bx", True),
        ("bx1", "", True),
        ("bx1", "b", True),
        ("bx1", "c", True),
        ("b*", "c", True),
        ("none*?", "", False),
    ]:
        wanted = [key for key in sorted(heads) if key.startswith(prefix) and (match is None or reference(match, key))]
        for limit in (1, 4, 1000):
            found = []
            after = None
            while True:
                page = await list_page(
                    storage, "ns", Kind.KV, match=match, prefix=prefix, after=after, limit=limit, values=values
                )
                assert len(page.items) <= limit
                found += page.items
                after = page.cursor
                if after is None:
                    break
            assert found == [(key, heads[key] if values else Head(b"m")) for key in wanted]


@pytest.mark.parametrize("match", [None, "*"])
async def test_a_page_that_is_exactly_full_at_the_end_has_no_cursor(storage: Storage, match: str | None) -> None:
    await fill(storage, {"a": Head(b""), "b": Head(b"")})
    assert (await list_page(storage, "ns", Kind.KV, match=match, limit=2)).cursor is None
    assert (await list_page(storage, "ns", Kind.KV, match=match, limit=1)).cursor == "a"


@pytest.mark.parametrize("match", [None, "*", "?*"])
async def test_values_stop_a_page_at_bytes_max(storage: Storage, match: str | None) -> None:
    await fill(storage, {f"{n:02}": Head(b"", b"x" * 10) for n in range(40)})

    async def keys(bytes_max: int, after: str | None = None) -> list[str]:
        page = await list_page(storage, "ns", Kind.KV, match=match, values=True, bytes_max=bytes_max, after=after)
        assert page.cursor == (page.items[-1][0] if len(page.items) + int(after or -1) + 1 < 40 else None)
        return [key for key, _ in page.items]

    assert len(await keys(1)) == 1
    assert len(await keys(100)) == 10
    assert len(await keys(201)) == 21
    assert len(await keys(201, "20")) == 19
    assert len(await keys(10_000)) == 40


async def test_what_is_not_accepted_is_left_out(storage: Storage) -> None:
    await fill(storage, {f"{n:03}": Head(b"" if n % 50 else b"yes") for n in range(300)})
    page = await list_page(storage, "ns", Kind.KV, limit=3, accept=lambda _, head: head.meta == b"yes")
    assert [key for key, _ in page.items] == ["000", "050", "100"]
    assert page.cursor == "100"


async def test_a_rare_glob_gives_short_pages_with_a_cursor(storage: Storage) -> None:
    await fill(storage, {f"{n:05}": Head(b"") for n in range(SCAN_MAX + 10)} | {"z": Head(b"")})
    first = await list_page(storage, "ns", Kind.KV, match="*z")
    assert first.items == []
    assert first.cursor == f"{SCAN_MAX - 1:05}"
    second = await list_page(storage, "ns", Kind.KV, match="*z", after=first.cursor)
    assert [key for key, _ in second.items] == ["z"]
    assert second.cursor is None


async def test_a_glob_without_wildcards_looks_at_one_record(storage: Storage) -> None:
    await fill(storage, {f"a{n:05}": Head(b"") for n in range(SCAN_MAX + 10)} | {"a": Head(b"")})
    assert await list_page(storage, "ns", Kind.KV, match="a") == ([("a", Head(b""))], None)
    assert await list_page(storage, "ns", Kind.KV, match="a", after="a") == ([], None)
    assert await list_page(storage, "ns", Kind.KV, match="a0") == ([], None)
