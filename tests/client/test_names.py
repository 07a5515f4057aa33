"""What may be a namespace, a key, an item."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.names import KEY_BYTES_MAX, NAMESPACE_LENGTH_MAX, InvalidName, check_key, check_namespace


@pytest.mark.parametrize("name", ["a", "Z9", "team-1_x.y", "-", "a" * NAMESPACE_LENGTH_MAX])
def test_namespaces(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "ä", "a\n", "\n", "a\0", "a" * (NAMESPACE_LENGTH_MAX + 1), "٣", "*"]
)
def test_not_namespaces(name: str) -> None:
    with pytest.raises(InvalidName, match="1 to 128"):
        check_namespace(name)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b",
        "..",
        ".",
        "a?b#c",
        "%2F",
        " ",
        "+",
        "\n",
        "🙂",
        "__",
        "{tag}",
        "*",
        "\ufeff",
        "é" * 256,
        "🙂" * 128,
        "x" * 512,
    ],
)
def test_keys(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("\0", "NUL"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        ("a\udfff", "surrogate"),
        ("x" * 513, "513 bytes"),
        ("é" * 257, "514 bytes"),
    ],
)
def test_not_keys(key: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason):
        check_key(key)
    with pytest.raises(InvalidName, match="the item"):
        check_key(key, "the item")


@given(st.text(min_size=1, max_size=300))
def test_a_key_is_refused_exactly_for_the_stated_reasons(key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    legal = 1 <= size <= KEY_BYTES_MAX and "\0" not in key
    try:
        assert check_key(key) == key
    except InvalidName:
        assert not legal
    else:
        assert legal
