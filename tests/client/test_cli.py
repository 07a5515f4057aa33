"""The ``rstore`` command, against a real service."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import rstore
from rstore.cli import lines
from rstore.cli.plot import plot


def test_key_value(run):
    etag = run("set", "k", '{"a": [1, null, "é"]}').json
    assert len(etag) == 1
    assert run("get", "k").out == '{"a": [1, null, "é"]}\n'
    run("set", "k/2", "--ttl", "100", stdin=b"2")
    assert run("keys").json == ["k", "k/2"]
    assert run("find", "k/*").json == [["k/2", 2]]
    assert len(run("find").json) == 2
    refused = run("set", "k", "1", "--if-absent")
    assert refused.code == 1
    assert run("del", "k", "absent").json == []
    assert run("keys").json == ["k/2"]


def test_bytes(run):
    run("set", "k", "--raw", stdin=b"\x00\xff")
    assert run("get", "k").json == [{"base64": "AP8="}]
    assert run("get", "k", "--raw").out == "\x00�"
    run("set", "k", "1")
    assert run("get", "k", "--raw").code == 1


def test_what_json_has_no_form_for_is_still_shown(run, service_url, namespace):
    with rstore.Store(service_url, namespace, frozen=False) as store:
        store["k"] = {1, 2}
        store["nan"] = float("nan")
        store["t"] = (1, b"x")
    assert [run("get", key).json for key in ("k", "nan", "t")] == [["{1, 2}"], ["nan"], [[1, {"base64": "eA=="}]]]


def test_time_series(run, tmp_path):
    rows = tmp_path / "points.csv"
    rows.write_text("time,temperature\n" + "".join(f"{t},{t / 10}\n" for t in range(0, 100, 10)))
    assert run("ts", "extend", "s", rows).json == [{"points": 10}]
    assert run("ts", "extend", "s", stdin=b'[100, "text"]\n[110, [1]]\n').json == [{"points": 2}]
    assert run("ts", "extend", "s", "--csv", stdin=b'-5,"{""a"": 1}"\n').json == [{"points": 1}]
    assert run("ts", "range", "s", "--start", "80").json == [[80, 8.0], [90, 9.0], [100, "text"], [110, [1]]]
    assert run("ts", "range", "s", "--start", "0", "--n", "2", "--freq", "30").json == [[0, 0.0], [30, 3.0]]
    assert run("ts", "first", "s").json == [[-5, {"a": 1}]]
    assert run("ts", "last", "s").json == [[110, [1]]]
    assert run("ts", "missing", "s", "100", "10", "--end", "130").json == [120, 130]
    assert run("ts", "list").json == ["s"]
    assert "6" in run("ts", "plot", "s", "--end", "60", "--width", "40").out
    assert run("ts", "remove", "s", "--start", "0").json == []
    assert run("ts", "range", "s").json == [[-5, {"a": 1}]]
    assert run("ts", "last", "absent").code == 1
    assert run("ts", "plot", "absent").code == 1


def test_a_large_file_goes_in_parts(run, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1_000)
    body = b"timestamp,value\n" + b"".join(b"%d,%d\n" % (t, t) for t in range(1_000))
    assert run("ts", "extend", "s", "--csv", stdin=body).json == [{"points": 1_000}]
    assert len(run("ts", "range", "s").json) == 1_000
    broken = run("ts", "extend", "s", "--csv", stdin=body + b"x,1\n")
    assert broken.code == 1
    assert broken.err.startswith("rstore: line 1002: the time is not an integer. Points stored before: 1,000")
    assert run("ts", "extend", "s", "nowhere.csv").err.startswith("rstore: cannot read nowhere.csv")


def test_a_plot_has_its_extremes():
    lines = list(plot([(t, float(t)) for t in range(1_000)], 60, 4))
    assert len(lines) == 5
    assert lines[0].endswith("█")
    assert lines[3].startswith("  0 │▁")
    assert lines[4].split() == ["└0", "999"]
    assert len(list(plot([(5, 1.5)], 10, 1))) == 2


def test_event_sequences(run):
    assert run("es", "apply", "e", "apples=5", 'name="x=y"', "--t", "1000").json == [{"apples": 5, "name": "x=y"}]
    assert run("es", "apply", "e", "apples:add=3", "name:delitem", "a:b:setitem=1").json == [{"a:b": 1, "apples": 8}]
    assert run("es", "past", "e", "1000").json == [{"apples": 5, "name": "x=y"}]
    assert run("es", "current", "e").json == [{"a:b": 1, "apples": 8}]
    assert run("es", "events", "e", "--end", "1000").json[0] == [1000, "apples", "setitem", 5]
    assert run("es", "list").json == ["e"]
    assert run("es", "prune", "e").json == []
    assert len(run("es", "events", "e").json) == 3
    for change in ("apples", "apples=", "apples=text", "apples:neg=1", "apples:add"):
        assert run("es", "apply", "e", change).code == 2, change
    assert run("es", "apply", "e", "absent:neg").code == 1
    assert run("es", "current", "absent").code == 1


def test_namespaces(run, namespace, service_url):
    made = f"{namespace}-made"
    assert run("ns", "create", made, "--sealed-only").json == []
    assert made in run("ns", "list").json
    assert httpx2.get(f"{service_url}/ns/{made}").json()["sealed_only"] is True
    assert run("-n", made, "set", "k", "1").code == 1
    assert run("ns", "discard", made, stdin=b"n\n").code == 1
    assert made in run("ns", "list").json
    assert run("ns", "discard", made, stdin=b"y\n").code == 0
    assert run("ns", "discard", made, "--yes").code == 0
    assert made not in run("ns", "list").json
    # Looking creates nothing.
    assert namespace not in run("ns", "list").json


def test_info(run, namespace):
    assert run("info").json[0]["namespace"] is None
    run("set", "k", "1")
    found = run("info").json[0]
    assert found["service"]["name"] == "rstored"
    assert found["namespace"] == {"namespace": namespace, "sealed_only": False, "kv": 1, "ts": 0, "es": 0}


def test_a_key_seals_and_is_never_shown(run):
    key = run("keygen").out.strip()
    run("--key", key, "set", "k", '"plaintext"')
    assert run("--key", key, "get", "k").json == ["plaintext"]
    assert run("get", "k").err.startswith("rstore: the value is sealed")
    for arguments in (["--help"], ["get", "--help"], []):
        shown = run("--key", key, "--token", "secret-token", *arguments)
        assert key not in shown.out + shown.err
        assert "secret-token" not in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "absent"],
        ["ts", "last", "absent"],
        ["set", "here", "1", "--if-absent"],
        ["es", "apply", "e", "absent:add=1"],
    ],
)
def test_an_error_is_one_line(run, arguments):
    done = run("set", "here", "1") and run(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("rstore: ")
    assert done.err.count("\n") == 1


def sessions() -> Iterator[tuple[str, str]]:
    """Every command in the sessions of docs/cli.md, and what it shows."""
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for session in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)


def test_the_sessions_of_the_page_show_what_they_say(serve, tmp_path, run, monkeypatch):
    token = secrets.token_hex(16)
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_ADMIN_TOKEN": token})
    monkeypatch.setenv("RSTORE_URL", service.url)
    monkeypatch.setenv("RSTORE_TOKEN", token)
    monkeypatch.delenv("RSTORE_NAMESPACE")
    for command, shown in sessions():
        feeding, pipe, line = command.rpartition(" | ")
        stdin = subprocess.run(["bash", "-c", feeding], capture_output=True, check=True).stdout if pipe else b""
        program, *arguments = shlex.split(line)
        assert program == "rstore"
        done = run(*arguments, stdin=stdin)
        assert done.code == (1 if shown.startswith("rstore: ") else 0), (command, done)
        expected = re.escape(shown).replace("…", ".+")
        assert re.fullmatch(expected, (done.out + done.err).rstrip("\n") + "\n" * bool(shown)), (command, done)


def test_help_shows_brackets(run):
    assert "[key, value]" in run("find", "--help").out
    assert "[timestamp, item, operator, value]" in run("es", "events", "--help").out


def test_without_a_service(closed_port):
    done = subprocess.run(
        [sys.executable, "-m", "rstore", "--url", f"http://127.0.0.1:{closed_port}", "get", "k"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("rstore: the service does not answer")
    assert done.stderr.count("\n") == 1


def test_without_typer():
    code = "import sys; sys.modules['typer'] = None; import rstore.cli; rstore.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "rstore: the package typer is missing; install rstore with its extra: rstore[cli]\n"


# --- rotate ------------------------------------------------------------------------------------------------


def test_rotate(run, service_url, namespace):
    old, new, lost = (rstore.generate_key() for _ in range(3))
    run("--key", old, "set", "k", "1")
    run("--key", old, "ts", "extend", "s", stdin=b"[1, 1]\n[2, 2]\n")
    run("--key", old, "es", "apply", "e", "n=5")
    checked = run("--key", new, "rotate", "--old-key", old, "--check")
    assert (checked.code, json.loads(checked.out)["stale"]) == (1, 4)
    assert run("--key", new, "rotate", "--old-key", lost, "--old-key", old).json[0]["resealed"] == 4
    assert run("--key", new, "get", "k").json == [1]
    run("--key", lost, "set", "lost", "1")
    run("set", "plain", "1")
    done = run("--key", new, "rotate", "--old-key", old)
    counted = json.loads(done.out)
    assert (done.code, counted["current"], counted["failed"], counted["unsealed"]) == (1, 4, 1, 1)
    assert re.fullmatch(
        r'rstore: kv \{"namespace": "\S+", "key": "lost"\}: the value is sealed under key \w{16}, .*\n', done.err
    )
    assert not [key for key in (old, new, lost) if key in checked.out + checked.err + done.out + done.err]
    assert run("rotate").err == "rstore: the new key is needed, as --key or RSTORE_KEY\n"


def test_rotate_shows_how_far_it_is(service_url, namespace):
    """On a terminal: the kinds, how many are through of how many, how fast, what was left alone."""
    old, new = rstore.generate_key(), rstore.generate_key()
    with rstore.Store(service_url, namespace, old, frozen=False) as store:
        store.extend("s", *[(t, t) for t in range(20_000)])
    with rstore.Store(service_url, namespace, new, frozen=False) as store:
        store.extend("s", *[(t, t) for t in range(100)])
    ours, theirs = pty.openpty()
    environment = os.environ | {"RSTORE_KEY": new, "RSTORE_OLD_KEYS": old, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "rstore", "--url", service_url, "-n", namespace, "rotate"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    out, _ = process.communicate()
    os.close(ours)
    assert json.loads(out)["resealed"] == 19_900
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    for told in (r"pairs", r"points .* \d+/20000 .*/s .* 100 left as they were", r"events"):
        assert re.search(told, text), text
    assert old not in text
    assert new not in text


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Nobody writes to it any more.
        return b""


def test_an_error_after_a_write_says_that_it_was_done(run, service_url, namespace):
    unreadable = {"item": "odd", "value": "gASV", "encoding": "pickle"}
    assert httpx2.post(f"{service_url}/ns/{namespace}/es/e/events", json={"events": [unreadable]}).is_success
    done = run("es", "apply", "e", "n=1")
    assert done.code == 1
    assert done.err.endswith("; it was done\n")
    assert [event["item"] for event in httpx2.get(f"{service_url}/ns/{namespace}/es/e/events").json()["events"]] == [
        "odd",
        "n",
    ]
