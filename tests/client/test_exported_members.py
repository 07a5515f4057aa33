"""What ``rstore`` exports is what it says it exports."""

from __future__ import annotations

import subprocess
import sys

import rstore
from rstore.core import errors


def test_all_names_every_public_member_and_no_other():
    public = {
        name for name, member in vars(rstore).items() if not name.startswith("_") and not isinstance(member, type(sys))
    } - {"annotations"}
    assert public | set(rstore._LATE) | {"__version__"} == set(rstore.__all__)
    assert {name for name in rstore.__all__ if hasattr(rstore, name)} == set(rstore.__all__) <= set(dir(rstore))
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
