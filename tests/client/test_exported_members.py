"""What ``rstore`` exports is what it says it exports."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rstore
import rstored
from rstore.core import errors

SDK = sorted(Path(rstore.__file__).parent.rglob("*.py"))
SERVICE = sorted(Path(rstored.__file__).parent.rglob("*.py"))


def test_all_names_every_public_member_and_no_other():
    members = {name: getattr(rstore, name) for name in dir(rstore) if not name.startswith("_")}
    public = {name for name, member in members.items() if not isinstance(member, type(sys))} - {"annotations"}
    assert public | {"__version__"} == set(rstore.__all__)
    assert not hasattr(rstore, "Sore")
    assert list(rstore.__all__) == sorted(rstore.__all__, key=lambda name: (not name.isupper(), name))


def test_every_exception_is_exported():
    tree = {name for name in errors.__all__ if name.endswith("Error")}
    assert tree <= set(rstore.__all__)


def test_the_import_brings_no_command_line_and_no_service():
    heavy = {"typer", "rich", "click", "fastapi", "pydantic", "rstored", "rstore.cli"}
    code = f"import sys, rstore; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_service_brings_no_client():
    code = (
        "import sys, rstored.cli.main; loaded = set(sys.modules);"
        "sdk = {name for name in loaded if name.startswith('rstore.') and not name.startswith('rstore.core')};"
        "print(sorted(sdk | {'httpx2', 'cryptography'} & loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What the core takes from elsewhere. None of it does I/O, or knows time or chance; `sys` is asked only for sizes.
PURE = re.compile(
    "__future__|array|binascii|bisect|collections|decimal|enum|fractions|functools|hashlib|itertools|math|msgspec"
    "|numbers|operator|re|struct|sys|typing|zlib"
)


@pytest.mark.parametrize("path", [path for path in SDK if path.parent.name == "core"], ids=lambda path: path.stem)
def test_the_core_imports_only_what_is_pure(path):
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    found = {name.partition(".")[0] for name in names if not name.startswith("rstore.core.")}
    # The end of a command is the one thing in the core that does I/O.
    assert set(itertools.filterfalse(PURE.fullmatch, found)) == (
        {"contextlib", "os", "signal", "typer"} if path.stem == "command" else set()
    )


def test_nothing_is_defined_that_nothing_uses():
    trees = {path: ast.parse(path.read_text()) for path in (*SDK, *SERVICE)}
    nodes = {path: [*ast.walk(tree)] for path, tree in trees.items()}
    used = {
        path: {node.id for node in nodes[path] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        | {node.attr for node in nodes[path] if isinstance(node, ast.Attribute)}
        | {alias.name for node in nodes[path] if isinstance(node, ast.ImportFrom) for alias in node.names}
        for path in trees
    }
    anywhere = set().union(*used.values())
    idle = [
        f"{path.stem}.{node.name}"
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list
        if node.name not in (used[path] if node.name.startswith("_") else anywhere) and not node.name.startswith("__")
    ]
    assert idle == ["__init__.BackendContract"], "the backends of others use that one; delete any other"


@pytest.mark.parametrize("path", [*SDK, *SERVICE], ids=lambda path: "/".join(path.parts[-3:]))
def test_no_module_imports_a_private_name_of_another(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if str(node.module).partition(".")[0] in ("rstore", "rstored")]
    names = [alias.name for node in ours for alias in node.names]
    assert [name for name in names if name.startswith("_") and name != "__version__"] == []


@pytest.mark.parametrize("path", [path for path in SDK if "cli" not in path.parts], ids=lambda path: path.stem)
def test_the_public_functions_of_a_module_stand_before_the_private_ones(path):
    functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions == sorted(functions, key=lambda name: name.startswith("_"))
