"""What the command takes as an argument: no more than the service's routes take, and nothing twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.client.commands import COMMANDS, PROGRAM, required

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OPTIONS = [
    (path, parameter)
    for path, command in [((), PROGRAM), *COMMANDS.items()]
    for parameter in command.params
    if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"
]


def assert_refused(done):
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("rstore: ")
    assert done.err.count("\n") == 1


# --- negative numbers --------------------------------------------------------------------------------------

NEGATIVE = [
    ("set", "temp", "-5"),
    ("set", "temp", "-0.5e3"),
    ("set", "-5", "-5"),
    ("get", "-5"),
    ("find", "-5", "-6*"),
    ("del", "-5", "-6"),
    ("ts", "missing", "roof", "-60", "60"),
    ("ts", "missing", "-60", "-60", "60", "--end", "-30"),
    ("ts", "range", "roof", "--start", "-60", "--end", "-30"),
    ("ts", "remove", "-1", "--start", "-60", "--end", "-30"),
    ("es", "apply", "shop", "-5=-5", "--t", "-10"),
    ("es", "apply", "shop", "-5:add=-5", "--t", "-9"),
    ("es", "past", "shop", "-5"),
    ("es", "events", "shop", "--start", "-60"),
    ("es", "prune", "-5"),
]


def test_negative_numbers_are_values_wherever_they_stand(run):
    for arguments in NEGATIVE:
        assert run(*arguments).code == 0, arguments
    assert run("set", "temp", "-5").code == 0
    assert run("get", "temp").json == [-5]
    assert run("es", "past", "shop", "-5").json == [{"-5": -10}]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_takes_a_negative_number_for_an_option(path, run):
    for number in ("-1", "-60", "-.5", "-1e3", "-9223372036854775808"):
        # One argument too many is refused as an argument, not as an option.
        assert "No such option" not in run(*path, *required(COMMANDS[path]), *[number] * 5).err


def test_what_begins_otherwise_with_a_hyphen_is_an_option_or_stands_after_two(run):
    assert_refused(run("set", "k", "-x"))
    assert run("set", "--", "-x", "1").code == 0
    assert run("get", "--", "-x").json == [1]


# --- given twice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=lambda value: "-".join(getattr(value, "opts", value)))
def test_an_option_is_given_once(path, option, run):
    name = option.opts[0]
    twice = [name, name] if option.is_flag else [name, "1", name, "2"]
    needed = required(COMMANDS[path]) if path else []
    done = run(*path, *twice, *needed) if path else run(*twice, "keys")
    if option.multiple:
        assert "given twice" not in done.err
    else:
        assert_refused(done)
        assert option.opts[0] in done.err
        assert "it is given twice" in done.err


def test_the_two_sides_of_a_switch_exclude_each_other(run):
    assert_refused(run("es", "prune", "k", "--remove", "--no-remove"))


# --- integers, seconds and text ----------------------------------------------------------------------------

ODD_NUMBERS = st.one_of(
    st.integers(-(2**64), 2**64).map(str),
    st.sampled_from(
        ["1_000", "+1", " 1", "1 ", "", "٣", "1e3", "1.0", "0x10", "1,000", "--1", "-", "007", "-0", "True", "9" * 30]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
)


@SLOW
@given(ODD_NUMBERS)
def test_an_integer_is_what_the_route_takes_for_one(run, service_url, namespace, text):
    httpx2.put(f"{service_url}/ns/{namespace}")
    answer = httpx2.get(f"{service_url}/ns/{namespace}/ts/s/range", params={"start": text})
    assert (run("ts", "range", "s", "--start", text).code == 0) == answer.is_success, (text, answer.text)


@SLOW
@given(st.one_of(ODD_NUMBERS, st.sampled_from(["0.5", "60", "1e-3", "inf", "nan", "0", "0.0", ".5", "5.", "-1"])))
def test_a_ttl_is_what_the_route_takes_for_one(run, service_url, namespace, text):
    if text == "":
        return  # A query without a value, and an argument that is empty, are nothing in common.
    answer = httpx2.put(f"{service_url}/ns/{namespace}/kv/k", params={"ttl": text}, content=b"1")
    assert (run("set", "k", "1", "--ttl", text).code == 0) == answer.is_success, (text, answer.text)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_text_that_is_not_utf8_is_refused(path, run):
    arguments = required(COMMANDS[path])
    for index, argument in enumerate(arguments):
        if argument == "1":
            assert run(*path, *arguments[:index], os.fsdecode(b"\xff"), *arguments[index + 1 :]).code == 2


def test_a_variable_that_is_not_utf8_is_refused(service_url):
    for name in (b"RSTORE_URL", b"RSTORE_NAMESPACE", b"RSTORE_KEY", b"RSTORE_TOKEN", b"RSTORE_OLD_KEYS"):
        command = [sys.executable, "-m", "rstore", *(["rotate"] if name == b"RSTORE_OLD_KEYS" else ["keys"])]
        done = subprocess.run(command, capture_output=True, env=os.environb | {name: b"\xff"}, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("option", ["--url", "--namespace", "-n", "--key", "--token", "--ca", "--cert"])
def test_an_empty_option_does_not_stand_for_the_default(option, run):
    assert_refused(run(option, "", "keys"))


def test_an_empty_namespace_is_not_the_default_one(run):
    for command in (["create", ""], ["discard", "", "--yes"]):
        assert_refused(run("ns", *command))


# --- what is wrong with an argument ------------------------------------------------------------------------

WRONG = st.one_of(
    st.sampled_from(["-1", "0", "007", "9223372036854775808", "99999999999", "1e3", "99999w", "x", "a b", "", "[1,"]),
    st.sampled_from(["é" * 300, "ftp://x", "http://x:99999", "http://a@x", "http://", "x:foo=1", "x:neg=1", "=1"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
)
RIGHT = {"CHANGE": "x=1", "GLOB": "a", "read": "read"}
VALUED = [
    (path, parameter)
    for path, command in [((), PROGRAM), *COMMANDS.items()]
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]
# What is no fault of an argument, but of what the store holds, or of what a file or standard input does.
OTHER_FAILURES = (
    "no such|does not exist|no numbers|cannot be applied|already has events|open to everybody|not confirmed|"
    "cannot read|standard input|key is needed"
)


def metavar(parameter) -> str:
    return parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar


@pytest.mark.parametrize(
    ("path", "parameter"), VALUED, ids=lambda value: getattr(value, "name", None) or "-".join(value)
)
@settings(SLOW, max_examples=4)
@given(text=WRONG)
@example(text="-1")
@example(text="0")
@example(text="9223372036854775808")
@example(text="ftp://x")
@example(text="")
def test_a_wrong_argument_is_named_and_the_exit_code_is_2(run, path, parameter, text):
    """Nothing that the SDK or the service say of an argument comes out: it is refused before, by its name."""
    options, arguments = [], []
    for other in COMMANDS[path].params if path else [parameter]:
        if other is parameter or other.required:
            given = text if other is parameter else RIGHT.get(metavar(other), "read" if other.name == "access" else "1")
            if other.opts[0].startswith("-"):
                options.append(f"{other.opts[0]}={given}")
            else:
                arguments.append(given)
    done = run(*path, *options, "--", *arguments) if path else run(*options, "keys")
    assert "Traceback" not in done.err
    if done.code == 2:
        assert re.search(rf"Invalid value for '{metavar(parameter)}'", done.err), done.err
        assert done.err.count("\n") == 1
    elif done.code == 1:
        assert re.search(OTHER_FAILURES, done.err), done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "option", "value"),
    [
        ("RSTORE_URL", "--url", "ftp://x"),
        ("RSTORE_NAMESPACE", "--namespace", "a b"),
        ("RSTORE_KEY", "--key", "short"),
        ("RSTORE_TOKEN", "--token", "a b"),
        ("RSTORE_CA", "--ca", "/nowhere"),
        ("RSTORE_CERT", "--cert", "/nowhere"),
    ],
)
def test_a_wrong_variable_is_named_with_its_option(run, monkeypatch, variable, option, value):
    monkeypatch.setenv(variable, value)
    done = run("keys")
    assert_refused(done)
    assert variable in done.err
    assert option in done.err
    assert "dsn" not in done.err
    assert value not in done.err or variable in ("RSTORE_URL", "RSTORE_CA", "RSTORE_CERT")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["sett"], "set"),
        (["delete"], "del"),
        (["es", "aply"], "apply"),
        (["frobnicate"], None),
        (["x"], None),
    ],
)
def test_a_command_that_is_not_there_may_be_another(run, words, meant):
    done = run(*words)
    assert_refused(done)
    assert ("did you mean" in done.err) is (meant is not None)
    if meant:
        assert f"(did you mean '{meant}'?)" in done.err
    assert not re.search(r"[?!.][?!.]", done.err)


# --- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [(), ("ts",), ("es",), ("ns",), ("token",), *COMMANDS], ids=" ".join)
def test_help_says_what_each_thing_is_and_shows_everywhere(path, run):
    done = run(*path, "--help")
    assert done.code == 0
    assert done.out.isascii()
    command = COMMANDS.get(path, PROGRAM)
    assert all(parameter.help for parameter in command.params)


@pytest.mark.parametrize("path", [(), ("ts",), ("es",), ("ns",), ("token",)], ids=" ".join)
def test_a_group_alone_shows_its_help_and_fails(path, run):
    done = run(*path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: rstore")


@pytest.mark.parametrize(
    "arguments", [["get"], ["gett", "k"], ["get", "a", "b"], ["--nothing"], ["ts", "range", "k", "--beginn", "1"]]
)
def test_a_command_that_is_written_wrongly_says_where_help_is(run, arguments):
    done = run(*arguments)
    assert_refused(done)
    assert "--help" in done.err
