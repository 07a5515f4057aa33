"""What ``rstore`` exports is what it says it exports."""

from __future__ import annotations

import ast
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
