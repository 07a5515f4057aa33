"""The Makefile: what it offers, when it installs, and that the lock is whole.

A whole installation from nothing is what continuous integration does before it can run this.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # MAKEFLAGS of a `make test` that runs this would make these runs its children.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that make looks at, and a `.venv` that is this one, without a stamp."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    return tmp_path


def test_help_is_the_default_and_lists_every_command():
    shown = make()
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == make("help").stdout
    for command in ("serve", "test", "check", "bench", "openapi", "lock", "clean"):
        assert re.search(rf"^make {command} +\S", shown.stdout, re.MULTILINE), command


@pytest.mark.parametrize("command", ["serve", "test", "check", "bench", "openapi"])
def test_every_command_installs_first_on_a_fresh_machine(clone, command):
    plan = make("--dry-run", command, cwd=clone).stdout
    assert "install --quiet --disable-pip-version-check -r constraints.txt" in plan
    assert "-m venv .venv" in plan


def test_it_installs_once_and_again_when_the_lock_or_the_project_changes(clone):
    stamp = clone / ".venv" / ".installed"
    stamp.touch()
    os.utime(stamp, (time.time() + 10, time.time() + 10))
    assert "pip install" not in make("--dry-run", "serve", cwd=clone).stdout
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(clone / name, (time.time() + 20, time.time() + 20))
        assert "pip install" in make("--dry-run", "serve", cwd=clone).stdout, name
        os.utime(clone / name, (0, 0))


def test_an_old_python_is_refused_with_a_remedy(clone, tmp_path):
    old = tmp_path / "old-python"
    # An interpreter that tells an older version; everything else about it is this one.
    old.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10); $1"\n')
    old.chmod(0o755)
    refused = make("serve", f"PYTHON={old}", cwd=clone)
    assert refused.returncode != 0
    assert "Python 3.11 or newer" in refused.stderr


def test_make_serve_serves_with_its_data_in_the_folder(clone):
    (clone / ".venv" / ".installed").touch()
    os.utime(clone / ".venv" / ".installed", (time.time() + 10, time.time() + 10))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RSTORED_PORT": str(port)}
    process = subprocess.Popen(["make", "serve"], cwd=clone, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends: to make and to the service
        process.wait(timeout=20)
    assert (clone / "rstore.db").exists()


def test_ci_runs_make_test_from_anywhere():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "exec make test"


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines), "only `name==version`"
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_lock_pins_everything_the_project_needs_to_a_version_that_it_allows():
    pinned = pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in ("service", "cli", "dev"):
        declared += project["project"]["optional-dependencies"][extra]
    waiting = [Requirement(line) for line in declared]
    seen: set[tuple[str, str]] = set()
    while waiting:  # what the needed need, as it is installed here
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt: make lock"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement} but {pinned[name]}"
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = [Requirement(line) for line in metadata.requires(name) or []]
            waiting += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_what_is_installed_is_what_the_lock_says():
    pinned = pins()
    here = {canonicalize_name(d.name): d.version for d in metadata.distributions()}
    assert {name: here.get(name) for name in pinned} == pinned


def test_the_benchmarks_run(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "run.py", "--quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for part in ("kv", "series", "append", "history"):
        assert f"## {part}\n" in done.stdout
        assert f"<!-- {part} -->" in (ROOT / "benchmarks" / "README.md").read_text()
    ratios = [float(ratio) for ratio in re.findall(r"\*\*([\d.]+)\*\*", done.stdout)]
    assert len(ratios) == 8
    assert all(ratio > 0 for ratio in ratios)
