"""How the commands end when their output cannot be written, when nobody reads it, and on Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from tests.client.commands import COMMANDS
from tests.forked import ForkedProcess, run

import rstore

KEY, OLD_KEY = rstore.generate_key(), rstore.generate_key()

# One call of each command that prints what it has to say, and of each that prints nothing.
CALLS = {
    ("get",): ["k"],
    ("set",): ["k", '"é"'],
    ("keys",): [],
    ("find",): [],
    ("info",): [],
    ("keygen",): [],
    ("rotate",): ["--check"],
    ("ts", "list"): [],
    ("ts", "range"): ["s"],
    ("ts", "first"): ["s"],
    ("ts", "last"): ["s"],
    ("ts", "missing"): ["s", "0", "1", "--end", "9"],
    ("ts", "extend"): ["extended"],
    ("ts", "plot"): ["numbers"],
    ("es", "list"): [],
    ("es", "apply"): ["e", 'x="é"'],
    ("es", "current"): ["e"],
    ("es", "past"): ["e", "2000"],
    ("es", "events"): ["e"],
    ("ns", "list"): [],
    ("token", "list"): [],
    ("token", "create"): ["--namespace", "a", "--access", "read", "--label", "é"],
    ("token", "rotate"): ["ID"],
}
SILENT = {
    ("del",): ["nothing"],
    ("ts", "remove"): ["nothing"],
    ("es", "prune"): ["nothing"],
    ("ns", "create"): ["made"],
    ("ns", "discard"): ["made", "--yes"],
    ("token", "revoke"): ["ID"],
}
ASCII_ALWAYS = {("keygen",), ("info",), ("rotate",), ("ts", "missing"), ("ts", "extend"), ("ns", "list"), ("set",)}


def test_every_command_is_called():
    assert CALLS.keys() | SILENT.keys() == COMMANDS.keys()


@pytest.fixture(scope="module")
def environment(serve_session, tmp_path_factory):
    """Variables for a service of its own that holds something for every command, all of it beyond ASCII."""
    secret = "secret-of-the-test-01234567890123456789"
    folder = tmp_path_factory.mktemp("endings")
    service = serve_session(f"sqlite:///{folder / 'store.db'}", env={"RSTORED_ADMIN_TOKEN": secret})
    with rstore.Store(service.url, "é".encode().hex(), token=secret, frozen=False) as store:
        store["k"] = store["é"] = "é"
        store.extend("s", (1, "é"))
        store.extend("é", (1, "é"))
        store.extend("numbers", (1, 1), (2, 2))
        for key in ("e", "é"):
            store.apply(key, {"x": "é"}, 1000)
        token = store.create_token("a", "read", label="é")
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
        "RSTORE_URL": service.url,
        "RSTORE_NAMESPACE": store.namespace,
        "RSTORE_TOKEN": secret,
        "TOKEN_ID": token.id,
    }


def arguments_of(path, environment) -> list[str]:
    given = [environment["TOKEN_ID"] if word == "ID" else word for word in (CALLS | SILENT)[path]]
    return (["--key", KEY] if path == ("rotate",) else []) + [*path, *given]


def completed(environment, path, stdout=None, prelude="") -> subprocess.CompletedProcess[bytes]:
    words = arguments_of(path, environment)
    return run("rstore", *words, env=environment, stdin=b"[1,1]\n", stdout=stdout, prelude=prelude)


def assert_one_line(error: bytes, path=()):
    lines = error.decode().splitlines()
    if path in {("token", "create"), ("token", "rotate")}:
        assert "this is token" in lines.pop(0)  # The token that was made is known all the same.
    assert len(lines) == 1
    assert lines[0].startswith("rstore: ")


def test_a_full_disk_is_one_line(environment):
    for path in CALLS:
        with open("/dev/full", "wb") as full:
            done = completed(environment, path, full)
        assert done.returncode == 1, (path, done)
        assert_one_line(done.stderr, path)
        assert b"No space left on device" in done.stderr


def test_a_character_that_the_terminal_cannot_encode_is_one_line(environment):
    for path in CALLS:
        done = completed(environment, path, prelude="import sys; sys.stdout.reconfigure(encoding='ascii')")
        if path in ASCII_ALWAYS or (path[0] == "token" and path != ("token", "list")):
            assert done.returncode == 0, (path, done)
        else:
            assert done.returncode == 1, (path, done)
            assert_one_line(done.stderr)
            assert b"UTF-8" in done.stderr


def test_a_reader_that_is_gone_ends_the_command_as_a_signal_does(environment):
    for path in CALLS:
        reader, writer = os.pipe()
        os.close(reader)
        done = completed(environment, path, writer)
        os.close(writer)
        assert done.returncode == -signal.SIGPIPE, (path, done)
        assert done.stderr == b"" or b"this is token" in done.stderr


@pytest.mark.parametrize("path", [("get",), ("find",), ("token", "create")], ids=" ".join)
def test_output_without_a_buffer_fails_alike(path, environment):
    command = [sys.executable, "-u", "-m", "rstore", *arguments_of(path, environment)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr, path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE


def test_output_that_is_closed_is_one_line(environment):
    command = [sys.executable, "-m", "rstore", "get", "k"]
    done = subprocess.run(
        ["bash", "-c", '"$@" >&-', "bash", *command], env=environment, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"rstore: standard output is closed\n"


def test_what_prints_nothing_needs_no_room(environment):
    for path in [path for path in SILENT if path[0] != "token"]:
        with open("/dev/full", "wb") as full:
            done = completed(environment, path, full)
        assert (done.returncode, done.stderr) == (0, b""), path


def test_help_and_mistakes_end_as_results_do():
    for words in (["--help"], ["ts", "extend", "--help"]):
        command = [sys.executable, "-m", "rstore", *words]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1
        assert_one_line(done.stderr)
    with open("/dev/full", "wb") as full:
        # With nowhere left to complain the exit code remains.
        done = subprocess.run([sys.executable, "-m", "rstore", "get"], stdout=full, stderr=full, check=False)
    assert done.returncode == 2


def test_what_is_written_before_a_failure_comes_out(environment):
    """The lines up to the one that the terminal cannot encode."""
    with rstore.Store(environment["RSTORE_URL"], "lines", token=environment["RSTORE_TOKEN"], frozen=False) as store:
        store.extend("s", *[(t, t) for t in range(5_500)], (5_500, "é"))
    command = [sys.executable, "-m", "rstore", "-n", "lines", "ts", "range", "s"]
    done = subprocess.run(command, capture_output=True, env=environment | {"PYTHONIOENCODING": "ascii"}, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert done.stdout.splitlines() == [b"[%d, %d]" % (t, t) for t in range(5_500)]


# --- input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["set", "k"], ["set", "k", "--raw"], ["ts", "extend", "s"]])
def test_input_that_is_closed_is_one_line(environment, arguments):
    command = [sys.executable, "-m", "rstore", *arguments]
    done = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", *command], env=environment, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"rstore: standard input is closed\n"


def test_nobody_to_ask_is_one_line(environment):
    command = [sys.executable, "-m", "rstore", "ns", "discard", "made"]
    for redirection in ("<&-", "</dev/null"):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "bash", *command],
            env=environment,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr


# --- Ctrl-C ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in CALLS | SILENT if path != ("keygen",)], ids=" ".join)
def test_ctrl_c_ends_the_command_as_a_signal_does(path, environment, tmp_path):
    """While it waits for a service that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = ["--url", url, *arguments_of(path, environment)]
        with open(tmp_path / "err", "wb") as err:
            process = ForkedProcess("rstore", words, env=environment, stderr=err)
        listener.settimeout(60)
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    with process.stdout as out:
        assert (code, out.read(), (tmp_path / "err").read_bytes()) == (-signal.SIGINT, b"", b"rstore: interrupted\n")


def test_ctrl_c_while_the_program_is_loaded():
    code = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from rstore.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"rstore: interrupted\n")


# --- rstored -----------------------------------------------------------------------------------------------


@pytest.fixture
def service_calls(tmp_path):
    dsn = f"sqlite:///{tmp_path / 'store.db'}"
    return [
        ["--help"],
        ["version"],
        ["openapi"],
        ["token", "create", "--namespace", "a", "--access", "read", "--label", "é", "--dsn", dsn],
        ["token", "list", "--dsn", dsn],
        ["migrate", "--check", "--dsn", dsn],
        ["serve", "--port", "0", "--dsn", dsn],
    ]


def test_the_service_s_commands_end_alike(service_calls):
    for words in service_calls:
        with open("/dev/full", "wb") as full:
            done = run("rstored", *words, env=os.environ, stdout=full)
        told = [line for line in done.stderr.decode().splitlines() if not line.startswith("{")]
        assert done.returncode == 1, words
        assert "Traceback" not in done.stderr.decode()
        assert told[-1] == "rstored: cannot write the output: No space left on device", words
        if words[0] == "serve":
            continue
        reader, writer = os.pipe()
        os.close(reader)
        done = run("rstored", *words, env=os.environ, stdout=writer)
        os.close(writer)
        assert done.returncode == -signal.SIGPIPE, words
        assert b"Traceback" not in done.stderr
