"""The sessions in the README and in docs/start.md work when pasted, a second time too, and answer what they show."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(serve_module, tmp_path_factory) -> str:
    """The address of a service with an empty store."""
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('store') / 'rstore.db'}").url


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def the(found: list[str]) -> str:
    """The one session that talks to a service."""
    (block,) = [block for block in found if "curl " in block or "Store(" in block]
    return block


def environment(server: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "RSTORE_URL": server, "LANG": "C.UTF-8"}


def run(command: list[str], server: str, folder: Path, pasted: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder, with a session on its standard input if one is pasted; it must end well."""
    done = subprocess.run(
        command,
        input=pasted,
        cwd=folder,
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done


def test_the_readme_begins_with_the_two_commands():
    first = blocks("README.md", "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make serve", "make test"]


def test_the_sessions_are_about_ten_lines():
    for language in ("sh", "python"):
        session = the(blocks("README.md", language))
        lines = [line for line in session.splitlines() if line and not line.startswith("#")]
        assert len(lines) <= 10


def test_the_curl_session_answers_what_it_shows(server, tmp_path):
    session = the(blocks("README.md", "sh"))
    assert ADDRESS in session
    shown = re.findall(r"^# (.*)$", session, flags=re.MULTILINE)
    assert len(shown) == session.count("curl ") - 1  # the PUT has nothing to show
    for _ in range(2):
        done = run(["bash", "-eu", "-c", session.replace(ADDRESS, server)], server, tmp_path)
        assert done.stdout == "".join(shown)
    assert not list(tmp_path.iterdir())


def test_the_python_session_answers_what_it_shows(server, tmp_path):
    """Pasted into an interpreter: each expression is shown as its comment says."""
    session = the(blocks("README.md", "python"))
    lines = session.splitlines()
    expected = [
        lines[node.end_lineno - 1].split("  # ")[1]
        for node in ast.parse(session).body
        if isinstance(node, ast.Expr) and "  # " in lines[node.end_lineno - 1]
    ]
    assert len(expected) >= 5
    for _ in range(2):
        done = run([sys.executable, "-i", "-q"], server, tmp_path, session)
        assert done.stdout.splitlines() == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(3))
def test_the_scripts_of_start_print_what_they_show(server, tmp_path, number):
    scripts = blocks("docs/start.md", "python")
    assert len(scripts) == 3
    script = scripts[number]
    shown = re.findall(r"print\(.*\)  # (.*)$", script, flags=re.MULTILINE)
    assert shown
    for _ in range(2):
        done = run([sys.executable, "-c", script], server, tmp_path)
        assert done.stdout.splitlines() == shown
