"""The ``rstored`` command."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest

from rstored import __version__
from rstored.addresses import is_loopback
from rstored.api.openapi import declare_routes, document
from rstored.process.serving import without_password


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rstored", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=cwd)


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("missing", ["uvloop", "fastapi", "pydantic_settings", "prometheus_client", "typer"])
def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from rstored.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"rstored: the package {missing} is missing; install rstore with its extra: rstore[service]\n"


def test_the_document():
    done = run("openapi")
    assert done.returncode == 0
    assert json.loads(done.stdout) == document(declare_routes())


def test_migrate(tmp_path):
    for _ in range(2):
        done = run("migrate", "--dsn", "sqlite:///store.db", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
    failed = run("migrate", "--dsn", "sqlite:///nowhere/store.db", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("rstored: ")
    assert failed.stderr.count("\n") == 1


def test_migrate_check(tmp_path):
    check = ("migrate", "--check", "--dsn", "sqlite:///store.db")
    behind = run(*check, cwd=tmp_path)
    assert (behind.returncode, behind.stdout) == (1, "the storage has schema version 0; this rstored knows 1\n")
    assert "rstored migrate" in behind.stderr
    assert list(tmp_path.iterdir()) == []
    run("migrate", "--dsn", "sqlite:///store.db", cwd=tmp_path)
    before = (tmp_path / "store.db").read_bytes()
    same = run(*check, cwd=tmp_path)
    assert (same.returncode, same.stdout, same.stderr) == (
        0,
        "the storage has schema version 1; this rstored knows 1\n",
        "",
    )
    assert (tmp_path / "store.db").read_bytes() == before
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE schema_version SET version = 7")
    connection.close()
    newer = run(*check, cwd=tmp_path)
    assert newer.returncode == 1
    assert "newer" in newer.stderr
    (tmp_path / "notes.db").write_text("no database")
    other = run("migrate", "--check", "--dsn", "sqlite:///notes.db", cwd=tmp_path)
    assert (other.returncode, other.stdout) == (1, "")
    assert run("migrate", "--check", "--dsn", "sqlite:///nowhere/store.db", cwd=tmp_path).returncode == 1


def test_help_names_every_command_and_no_arguments_is_help():
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "version", "openapi", "migrate"):
        assert command in done.stdout
    assert "--insecure" in run("serve", "--help").stdout


def test_an_unknown_option_is_refused():
    assert run("serve", "--prot", "5").returncode == 2
    failed = run("serve", "--log-level", "loud")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "--log-level" in failed.stderr


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host, loopback):
    assert is_loopback(host) is loopback


def test_a_dsn_is_shown_without_its_password():
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password("sqlite:///rstore.db") == "sqlite:///rstore.db"
    for name in ("password", "sslpassword", "access_token", "apiKey", "client_secret", "AUTH", "credentials"):
        assert without_password(f"x://host?a=1&{name}=hidden&b=2") == f"x://host?a=1&{name}=***&b=2"


def test_ipv6(serve, tmp_path):
    import socket

    import httpx2

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", host="::1")
    assert server.url.startswith("http://[::1]:")
    assert httpx2.get(f"{server.url}/healthz").status_code == 200


def changed(line: str) -> tuple[str, str]:
    """What a line of the log says was done to which token; it says as which user too."""
    logged = json.loads(line)
    assert logged["uid"] == os.getuid()
    return logged["message"], logged["changed_token_id"]


def test_tokens(tmp_path):
    def token(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("token", *arguments, "--dsn", "sqlite:///store.db", cwd=tmp_path)

    made = token("create", "--namespace", "team-*", "--namespace", "x", "--access", "write", "--expires", "90d")
    assert made.returncode == 0
    text = made.stdout.strip()
    found = re.fullmatch(r"rst_([0-9a-f]{16})_[\w-]{43}", text)
    logged, said = made.stderr.splitlines()
    assert said == f"rstored: this is token {found[1]}; it is not shown again"
    assert changed(logged) == ("token created", found[1])
    assert json.loads(logged)["namespaces"] == ["team-*", "x"]
    (line,) = token("list").stdout.splitlines()
    listed = json.loads(line)
    assert text.split("_", 2)[2] not in line
    assert (listed["id"], listed["namespaces"], listed["access"]) == (found[1], ["team-*", "x"], "write")
    assert listed["expires"] - listed["created"] == 90 * 86_400_000
    rotated = token("rotate", found[1], "--grace", "1h")
    assert rotated.stdout.startswith(f"rst_{found[1]}_")
    assert rotated.stdout.strip() != text
    assert changed(rotated.stderr.splitlines()[0]) == ("token rotated", found[1])
    revoked = token("revoke", found[1])
    assert revoked.returncode == 0
    assert changed(revoked.stderr) == ("token revoked", found[1])
    for secret in (text.split("_", 2)[2], rotated.stdout.strip().split("_", 2)[2]):
        assert secret not in made.stderr + rotated.stderr + revoked.stderr
    assert token("list").stdout == ""
    for wrong, said in (
        (("revoke", found[1]), "there is no token"),
        (("rotate", found[1]), "there is no token"),
        (("rotate", found[1], "--grace", "soon"), "span of time"),
        (("create", "--namespace", "a/b", "--access", "read"), "a glob of namespaces"),
        (("create", "--namespace", "a", "--access", "read", "--expires", "0"), "a lifetime"),
    ):
        failed = token(*wrong)
        assert (failed.returncode, failed.stdout) == (1, ""), wrong
        assert failed.stderr.startswith("rstored: ")
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1
    assert token("create", "--namespace", "a", "--access", "all").returncode == 2
    assert token("create", "--access", "read").returncode == 2
    assert token("create", "--namespace", "*", "--access", "metrics").returncode == 0
