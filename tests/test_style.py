"""What STYLE.md says of the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Each module that this file imports from, and the name that it takes from there."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_module_of_the_tests_imports_another_one_with_tests(file: Path) -> None:
    shared = [
        f"{module}.{name}"
        for module, name in imported(file)
        if module.split(".")[0] == "tests" and any(part.startswith("test_") for part in (*module.split("."), name))
    ]
    assert shared == [], "move what is shared into a module of its own"
