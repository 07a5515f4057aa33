"""The documentation says what there is, and nothing else: settings, limits, commands, routes, metrics, error codes."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer.main

import rstore.core.errors
from rstore.cli.program import cli as rstore_commands
from rstore.core.errors import PROBLEMS
from rstored.api.metrics import Metrics
from rstored.api.openapi import declare_routes, document
from rstored.backends import BACKENDS
from rstored.cli.main import cli
from rstored.limits import Limits
from rstored.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
SOURCES = sorted(path for folder in ("client", "service", "examples") for path in (ROOT / folder).rglob("*.py"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(document: str, title: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    level, found = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text(document), re.MULTILINE | re.DOTALL).groups()
    return re.split(rf"^#{{1,{len(level)}}} ", found, flags=re.MULTILINE)[0]


def table(document: str, title: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    lines = [line for line in section(document, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_says_to_install_rstore_from_an_index(path):
    # It is on none, so the name there could be that of another package.
    assert not re.search(r"pip install (?:-\S+ )*['\"]?rstore\b", path.read_text(encoding="utf-8"))


# --- errors.md ---------------------------------------------------------------------------------------------


def test_every_problem_is_in_the_table_of_errors_as_it_is():
    told = [row[:4] for row in table("docs/errors.md", "All codes")]
    are = [[f"`{code}`", str(row.status), row.title, f"`{row.exception.__name__}`"] for code, row in PROBLEMS.items()]
    assert told == are
    assert all(row[4].endswith(".") for row in table("docs/errors.md", "All codes"))


def test_the_tree_of_exceptions_is_drawn_as_in_the_module_and_as_it_is():
    drawn = re.search(r"^    Exception\n(?:    .*\n)+", rstore.core.errors.__doc__, re.MULTILINE)[0]
    assert textwrap.dedent(drawn) in text("docs/errors.md")
    tree = {name for name in rstore.core.errors.__all__ if name.endswith("Error")}
    assert set(re.findall(r"\w+Error\b", drawn)) == tree
    for name in tree - {"StoreError"}:
        assert getattr(rstore.core.errors, name).__bases__ == (rstore.core.errors.StoreError,)


# --- operating.md --------------------------------------------------------------------------------------------


def test_every_setting_is_in_its_table_as_it_is():
    fields = {name: field for name, field in Settings.model_fields.items() if name != "limits"}
    assert table("docs/operating.md", "Settings") == [
        [f"`RSTORED_{name.upper()}`", f"`{json.dumps(field.default).strip(chr(34))}`", field.description]
        for name, field in fields.items()
    ]


def test_every_limit_is_in_its_table_as_it_is():
    told = table("docs/operating.md", "Limits")
    assert [row[:2] for row in told] == [
        [f"`{name}`", f"{field.default:,}"] for name, field in Limits.model_fields.items()
    ]
    for (_, _, bounds, problem), field in zip(told, Limits.model_fields.values(), strict=True):
        assert bounds == (field.description or bounds)
        codes = re.findall(r"`([a-z-]+)`", problem)
        assert codes or problem.startswith("none: ")
        assert set(codes) <= set(PROBLEMS)


def test_the_compose_file_passes_every_setting():
    names = [f"RSTORED_{name.upper()}" for name in Settings.model_fields if name != "limits"]
    names += [f"RSTORED_LIMITS__{name.upper()}" for name in Limits.model_fields]
    block = "".join(f"  {name}:\n" for name in names)
    assert f"\nx-settings: &settings\n{block}\n" in text("docker-compose.yml"), f"it must be\n{block}"


def options(command) -> set[str]:
    """The long options of a command; of a pair of which one is the default (`--a/--b`) both."""
    given = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    return {option for option in given if option.startswith("--")} - {"--help"}


def commands(group, prefix: str = "") -> dict[str, set[str]]:
    """Every command of a program with its options."""
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = options(command)
    return found


def test_every_command_of_rstore_is_told_with_its_options():
    program = typer.main.get_command(rstore_commands)
    rows = {
        re.match(r"`rstore ([a-z ]+?)(?= [A-Z\[]|`)", row[0])[1]: row[1] for row in table("docs/cli.md", "Commands")
    }
    are = commands(program)
    assert rows.keys() == are.keys()
    for command, row in rows.items():
        assert set(re.findall(r"--[a-z-]+", row)) == are[command], command
        assert re.search(rf"^\$ .*\brstore (-.* )?{command}\b", text("docs/cli.md"), re.MULTILINE), command
    assert set(re.findall(r"--[a-z]+", section("docs/cli.md", "Options"))) == options(program) | {"--help"}


def test_every_command_and_option_is_told():
    told = section("docs/operating.md", "Commands")
    for command, options in commands(typer.main.get_command(cli)).items():
        assert f"`rstored {command}" in told, command
        for option in options:
            assert option in told, f"rstored {command} {option}"


def test_every_backend_is_told_and_no_other():
    told = [scheme for row in table("docs/operating.md", "Backends") for scheme in re.findall(r"`([a-z+]+)://", row[0])]
    assert set(told) == set(BACKENDS)


def test_every_metric_is_told():
    told = section("docs/operating.md", "Health, metrics and logs")
    for name in re.findall(r"^# TYPE (\w+) ", Metrics().render().decode(), re.MULTILINE):
        assert f"`{name}`" in told or name.startswith("rstored_process_")


# --- rest.md -------------------------------------------------------------------------------------------------


def test_every_route_is_told():
    paths = document(declare_routes())["paths"]
    told = text("docs/rest.md")
    for path, operations in [*paths.items(), ("/docs", ["get"]), ("/openapi.json", ["get"])]:
        short = path.removeprefix("/ns/{namespace}") if path.startswith("/ns/{namespace}/") else path
        for method in operations:
            rows = [line for line in told.splitlines() if method.upper() in line and stands_in(short, line)]
            assert rows, f"{method.upper()} {path}"


def stands_in(path: str, line: str) -> bool:
    """Whether the route is named in the line, whole or after `,` as a sibling (`…/first`, `last`)."""
    parent, _, last = path.rpartition("/")
    return bool(re.search(rf"[ `]{re.escape(path)}[?` ]", line)) or (f"{parent}/" in line and f"`{last}`" in line)


# --- ARCHITECTURE.md -----------------------------------------------------------------------------------------


def drawn_modules() -> tuple[list[str], list[str]]:
    """The modules and packages of SDK and service in the drawing, from top to bottom."""
    lines = re.search(r"\n\n((?:    .*\n|\n)+)\n## ", text("ARCHITECTURE.md"))[1].splitlines()
    beginning = lines[0].index("service/rstored")
    columns = [line[:beginning] for line in lines[1:]], [line[beginning:] for line in lines[1:]]
    sdk, service = (
        [name for line in column for name in re.findall(r"\b(\w+)(?:\.py|/)(?=[\s,]|$)", line)] for column in columns
    )
    return sdk, service


def test_every_module_is_drawn_in_the_order_of_the_contracts():
    contracts = {
        contract["name"]: contract
        for contract in tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    }
    sdk, service = drawn_modules()
    core = sdk[sdk.index("core") + 1 :]
    for drawn, name in zip(
        (sdk, service, core), ("The SDK's layers", "The service's layers", "The layers of the core"), strict=True
    ):
        layers = [layer.split(" | ") for layer in contracts[name]["layers"]]
        heights = {module: height for height, layer in enumerate(layers) for module in layer}
        order = [heights[module] for module in drawn if module in heights]
        assert order == sorted(order), name
        assert set(heights) - {"__main__"} <= set(drawn), name


def test_every_place_of_a_change_exists():
    roots = [
        ROOT,
        *(
            ROOT / name
            for name in ("client", "service", "client/rstore", "service/rstored", "service/rstored/backends")
        ),
    ]
    for row in table("ARCHITECTURE.md", "Where a change goes"):
        for place in re.findall(r"`([\w./]+/[\w./]*)`", row[1]):
            assert any((root / place).exists() for root in roots), place


# --- all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )
