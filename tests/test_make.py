"""The Makefile: what it offers, and when it installs. What it installs from is tested in test_locks.py.

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
import urllib.request
from pathlib import Path

import pytest
from tests.waiting import SECONDS_MAX

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
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    return tmp_path


def test_help_is_the_default_and_lists_every_command():
    shown = make()
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == make("help").stdout
    told = (
        "serve",
        "servers",
        "test",
        "container-test",
        "crash-test",
        "stress-test",
        "fault-test",
        "fuzz",
        "check",
        "bench",
        "openapi",
        "lock",
        "check-deps",
        "dist",
        "clean",
    )
    for command in told:
        assert re.search(rf"^make {command} +\S", shown.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "command",
    ["serve", "test", "container-test", "crash-test", "fault-test", "fuzz", "check", "bench", "openapi", "install"],
)
def test_every_command_installs_first_on_a_fresh_machine(clone, command):
    plan = make("--dry-run", command, cwd=clone).stdout
    assert "-m venv .venv" in plan
    installations = [line for line in plan.splitlines() if " install " in line and "pip" in line]
    # Nothing is taken whose hash is not known, and nothing is resolved or built of what is not the project.
    locked, own = [line.partition("--disable-pip-version-check ")[2] for line in installations]
    assert locked == "--require-hashes --only-binary :all: --no-deps -r locks/development.txt"
    assert own == "--no-deps --no-build-isolation -e ."


def test_it_installs_once_and_again_when_the_lock_or_the_project_changes(clone):
    stamp = clone / ".venv" / ".installed"
    stamp.touch()
    os.utime(stamp, (time.time() + 10, time.time() + 10))
    assert "pip install" not in make("--dry-run", "serve", cwd=clone).stdout
    for name in ("pyproject.toml", "locks/development.txt"):
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
        deadline = time.monotonic() + SECONDS_MAX
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
        process.wait(SECONDS_MAX)
    assert (clone / "rstore.db").exists()


# --- scripts/servers.sh ------------------------------------------------------------------------------------


class Machine:
    """The programs of a machine, for ``scripts/servers.sh``: a folder that is all of its PATH."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin"
        self.homes = folder / "postgresql"
        self.log = folder / "apt-get.log"
        for made in (self.path, self.homes):
            made.mkdir()
        for needed in ("cat", "env"):
            (self.path / needed).symlink_to(shutil.which(needed))

    def has(self, *names: str, does: str = "exit 0", where: Path | None = None) -> None:
        for name in names:
            program = (where or self.path) / name
            program.write_text(f"#!/bin/sh\n{does}\n")
            program.chmod(0o755)

    def servers(self, *arguments: str, ci: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.path), "SERVER_FOLDERS": str(self.homes), "CI": ci}
        return subprocess.run(
            ["/bin/sh", ROOT / "scripts" / "servers.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


POSTGRESQL = ("initdb", "postgres", "pg_basebackup")
REDIS = ("redis-server", "redis-cli")
NGINX = ("nginx",)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.has("id", does="echo 1000")
    return machine


def root(machine: Machine) -> None:
    machine.has("id", does="echo 0")
    machine.has("apt-get", does=f'echo "$@" >>{machine.log}')


def test_make_test_looks_for_the_servers_first(clone):
    plan = make("--dry-run", "test", cwd=clone).stdout
    assert "scripts/servers.sh" in plan
    assert plan.index("scripts/servers.sh") < plan.index("/pytest -q -n")


@pytest.mark.parametrize("redis", [REDIS, ("valkey-server", "valkey-cli")], ids=["redis", "valkey"])
def test_servers_that_are_there_are_no_matter(machine, redis):
    machine.has(*redis, *NGINX)
    machine.has(*POSTGRESQL, where=machine.homes)
    found = machine.servers(ci="true")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((), "postgresql redis-server nginx"),
        ((*POSTGRESQL, *NGINX), "redis-server"),
        ((*REDIS, *NGINX), "postgresql"),
        ((*POSTGRESQL[:2], *REDIS, *NGINX), "postgresql"),
        ((*POSTGRESQL, REDIS[0], *NGINX), "redis-server"),
        ((*POSTGRESQL, *REDIS), "nginx"),
    ],
    ids=lambda names: "+".join(names) or "nothing" if isinstance(names, tuple) else names,
)
def test_a_missing_server_is_told_loudly_and_is_a_failure_in_ci(machine, there, missing):
    machine.has(*there)
    told = machine.servers()
    assert told.returncode == 0
    assert "NOT EVERYTHING WILL BE TESTED" in told.stderr
    assert f"apt-get install {missing}\n" in told.stderr
    for value in ("true", "1"):
        failed = machine.servers(ci=value)
        assert failed.returncode == 1
        assert f"apt-get install {missing}\n" in failed.stderr


def test_root_on_debian_would_install_what_is_missing_and_nothing_else(machine):
    root(machine)
    machine.has(*REDIS, *NGINX)
    planned = machine.servers("--dry-run", ci="true")
    assert planned.returncode == 0
    assert "+ apt-get update -qq\n" in planned.stderr
    assert re.search(r"apt-get install .*--no-install-recommends postgresql\n", planned.stderr)
    assert not machine.log.exists()


def relocated_script(machine: Machine, tmp_path: Path) -> tuple[Path, Path]:
    """The script, and the file by which it keeps Debian from starting servers, which must not be this machine's."""
    script = tmp_path / "servers.sh"
    policy = tmp_path / "policy-rc.d"
    text = (ROOT / "scripts" / "servers.sh").read_text()
    assert text.count("/usr/sbin/policy-rc.d") == 1
    script.write_text(text.replace("/usr/sbin/policy-rc.d", str(policy)))
    for needed in ("rm", "chmod"):
        (machine.path / needed).symlink_to(shutil.which(needed))
    return script, policy


def test_an_installation_that_fails_is_seen_by_what_is_still_missing(machine, tmp_path):
    root(machine)
    script, policy = relocated_script(machine, tmp_path)
    machine.has("apt-get", does=f'echo "$@" >>{machine.log}; cat {policy} >>{machine.log}; exit 100')
    environment = {"PATH": str(machine.path), "SERVER_FOLDERS": str(machine.homes)}
    for ci, code in (("", 0), ("true", 1)):
        done = subprocess.run(
            ["/bin/sh", script], env={**environment, "CI": ci}, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == code
        assert "apt-get install postgresql redis-server nginx" in done.stderr
        assert not policy.exists()
    assert "update -qq\n#!/bin/sh\nexit 101\n" in machine.log.read_text()


def test_named_packages_are_installed_and_not_started(machine, tmp_path):
    script, policy = relocated_script(machine, tmp_path)
    machine.has("apt-get", does=f'echo "$@" >>{machine.log}; cat {policy} >>{machine.log}')
    done = subprocess.run(
        ["/bin/sh", script, "--install", "wrk", "webdis"],
        env={"PATH": str(machine.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, installed, shebang, refusal = machine.log.read_text().splitlines()
    assert installed.startswith("install ")
    assert installed.endswith(" --no-install-recommends wrk webdis")
    assert (shebang, refusal) == ("#!/bin/sh", "exit 101")
    assert not policy.exists()


def test_the_script_and_the_tests_look_for_the_same_programs():
    script = (ROOT / "scripts" / "servers.sh").read_text()
    for program in (*POSTGRESQL, *REDIS, "valkey-server", "valkey-cli"):
        assert f" {program}" in script
        assert f'"{program}"' in (ROOT / "tests" / "servers.py").read_text()


# --- continuous integration --------------------------------------------------------------------------------


def test_ci_runs_make_test_from_anywhere():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert "make test" in lines


# --- scripts/containers.sh ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "reason"),
    [
        ({"uname": "echo Darwin"}, "takes Linux"),
        ({"uname": "echo Linux", "id": "echo 1000"}, "takes root"),
        ({"uname": "echo Linux", "id": "echo 0", "unshare": "exit 1"}, "no namespaces"),
        (
            {"uname": "echo Linux", "id": "echo 0", "unshare": "exit 0", "flock": "exit 0"},
            "missing, by the names of their Debian packages: docker.io docker-cli containerd runc debootstrap",
        ),
        (
            {"uname": "echo Linux", "id": "echo 0", "unshare": "exit 0", "flock": "exit 1"},
            "another container-test runs",
        ),
    ],
    ids=["system", "user", "namespaces", "programs", "twice"],
)
def test_container_test_says_what_it_lacks(machine, tmp_path, has, reason):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "containers.sh", scripts)
    for needed in ("dirname", "mkdir"):
        (machine.path / needed).symlink_to(shutil.which(needed))
    for name, does in has.items():
        machine.has(name, does=does)
    failed = subprocess.run(
        ["/bin/sh", scripts / "containers.sh"],
        env={"PATH": str(machine.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("container-test cannot run: ")
    assert reason in failed.stderr
