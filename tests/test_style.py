"""What STYLE.md says of the tests themselves, and of the names of files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
PRODUCT = re.compile(r"rstored?(\.|\Z)")
PRIVATE = re.compile(r"_(?!_|\Z)\w*")
# What the SDK's page says that a subclass may define.
OFFERED = set(re.findall(r"`(_[a-z_]+)\b", (TESTS.parent / "docs" / "sdk.md").read_text()))
# Of a named tuple these are public, of the language's own modules the others: `_` keeps them out of `import *`.
PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_exit", "_reconstructor"}


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


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that are defined here, on ``self`` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


PRIVATE_OF_THE_PRODUCT = {
    name
    for folder in ("client", "service")
    for file in (TESTS.parent / folder).rglob("*.py")
    for name in defined(ast.parse(file.read_text()))
    if PRIVATE.fullmatch(name)
}


def is_own(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def touched(tree: ast.Module) -> Iterator[str]:
    """The private names of others that this module reads, sets, imports, patches or overrides."""
    products = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and PRODUCT.match(node.module or ""):
            products |= {alias.asname or alias.name for alias in node.names}
            yield from [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names if PRODUCT.match(alias.name) for part in alias.name.split("."))
        elif isinstance(node, ast.Attribute) and not is_own(node.value):
            yield node.attr
        # A name that is patched or looked up, whole or as the end of a path.
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].endswith("attr"):
            texts = [part.value for part in node.args[:2] if isinstance(part, ast.Constant)]
            yield from (name for text in texts if isinstance(text, str) for name in text.split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and {ast.unparse(base).split(".")[0] for base in node.bases} & products:
            yield from {*defined(node)} & PRIVATE_OF_THE_PRODUCT


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_touches_a_private_name(file: Path) -> None:
    found = {name for name in touched(ast.parse(file.read_text())) if PRIVATE.fullmatch(name)}
    assert found - OFFERED - PUBLIC == set(), "test through what is public, or let the product offer it"


def test_a_private_name_is_found_wherever_it_is_touched() -> None:
    for line in (
        "from rstore.cli import _x",
        "from rstore._x import y",
        "import rstored._x.y",
        "thing()._x",
        "store.service._x = 1",
        "super()._x()",
        "monkeypatch.setattr(module, '_x', 1)",
        "monkeypatch.setattr('rstored.cli._x', 1)",
        "getattr(store, '_x')",
        "monkeypatch.delattr(store, '_x')",
    ):
        assert "_x" in {*touched(ast.parse(line))}, line
    private = min(PRIVATE_OF_THE_PRODUCT)
    assert private in {*touched(ast.parse(f"from rstore import Store\nclass Own(Store):\n    {private} = 1"))}
    assert {*touched(ast.parse("class Own:\n    _x = 1\n    def y(self): return self._x"))} == set()
    assert {"_dump", "_load", "_freq"} <= OFFERED


# What RSTORE_URL and the like say is not for the tests, but for the commands that they run.
VARIABLE = re.compile(r"(environ\.get\(|getenv\()\"RSTORE_")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_a_variable_that_is_set_and_empty_counts_as_not_set(file: Path) -> None:
    assert VARIABLE.search(file.read_text()) is None, "read it by `knob`"


# A busy machine is slow at anything. A bound has a name that says what it is; what must not be waited for is longer.
SPEED = re.compile(r"assert .*(monotonic|perf_counter)\(\).*< *[0-9]")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_asserts_that_something_was_fast(file: Path) -> None:
    assert SPEED.search(file.read_text()) is None, "wait for a condition, or compare with what must not be waited for"


NOTHING = {"utils", "helpers", "common", "manager", "handler", "base", "misc"}


def test_every_file_has_a_name_that_says_what_is_in_it() -> None:
    files = [file for folder in ("client", "service", "tests") for file in (TESTS.parent / folder).rglob("*.py")]
    assert [file for file in files if {file.stem, file.parent.name} & NOTHING] == []


RULER = re.compile(r"^ *# ?[-=─]{3}", re.MULTILINE)


def test_no_module_of_the_product_has_a_ruler() -> None:
    files = [file for folder in ("client", "service") for file in (TESTS.parent / folder).rglob("*.py")]
    assert [file for file in files if RULER.search(file.read_text())] == [], "make it two files, or order its methods"
