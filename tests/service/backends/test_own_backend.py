"""A backend that somebody else has written, held to the contract from outside as docs/backends.md tells it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from rstored.backends import backend_class
from rstored.problems import Problem

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
(SUITE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(ENTRY_POINT,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel of this project is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python beside the example, with the wheel, away from this project's own files."""
    (folder / "memory_backend.py").write_bytes((ROOT / "examples" / "memory_backend.py").read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PY")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join(map(str, (installed, folder)))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_wheel_has_the_suite_the_scripts_and_the_extra(installed: Path, tmp_path: Path) -> None:
    (metadata,) = installed.glob("rstore-*.dist-info/METADATA")
    wanted = re.findall(r"^Requires-Dist: (\w+).*; extra == 'testing'$", metadata.read_text("utf-8"), re.MULTILINE)
    assert sorted(wanted) == ["hypothesis", "pytest"]
    scripts = Path("rstored", "backends", "redis", "lua")
    assert sorted(os.listdir(installed / scripts)) == sorted(os.listdir(ROOT / "service" / scripts))
    told = run(installed, tmp_path, "-c", "import rstored.testing as testing; print(testing.__file__)").stdout
    assert Path(told.strip()).is_relative_to(installed)


def test_the_example_of_the_page_passes(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_memory.py").write_text(SUITE)
    done = run(installed, tmp_path, "-m", "pytest", "-q", "-W", "error")
    assert done.returncode == 0, done.stdout
    passed = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > 25


MISTAKES = {
    "NoBytesMax": """
        def head(self, read):
            return self.heads.get(read.place)
        Records.head = head
    """,
    "PrefixIgnored": """
        listing = Records.listing
        Records.listing = lambda self, read: listing(self, read._replace(prefix=""))
    """,
    "OneMore": """
        listing = Records.listing
        Records.listing = lambda self, read: listing(self, read._replace(limit=read.limit + 1))
    """,
    "NoFloor": """
        scan = Records.scan
        Records.scan = lambda self, read: scan(self, read._replace(floor=False))
    """,
    "NeverMore": """
        scan = Records.scan
        Records.scan = lambda self, read: scan(self, read)._replace(more=False)
    """,
    "ExpiredCounted": """
        count = Records.count
        Records.count = lambda self, read, kind: count(self, read._replace(now_ms=-1), kind)
    """,
    "ExpiredInAnyOrder": """
        expired = Records.expired
        Records.expired = lambda self, read: sorted(expired(self, read), key=lambda place: place.key)
    """,
    "RowsLeftBehind": """
        def delete(self, gone):
            self.heads.pop(gone, None)
        Records.delete = delete
    """,
    "ByNotUnique": """
        def put_row(self, place, lane, row):
            assert place in self.heads
            self.rows.setdefault((place, lane), {})[row.sort] = row
        Records.put_row = put_row
    """,
    "NothingUndone": """
        Records.copy = lambda self: self
    """,
    "StaleHeads": """
        async def update(self, updates):
            self.check_open()
            before = self.stores[self.dsn]
            updates = [update._replace(plan=lambda heads, plan=update.plan: plan(
                {place: before.head(HeadRead(place, 0)) for place in heads}
            )) for update in updates]
            return [self.try_out(update) for update in updates]
        MemoryBackend.update = update
    """,
    "NeighboursDisturbed": """
        async def update(self, updates):
            self.check_open()
            results = [self.try_out(update) for update in updates]
            failed = [result for result in results if isinstance(result, Exception)]
            return [failed[0]] * len(results) if failed else results
        MemoryBackend.update = update
    """,
    "OpenForEver": """
        MemoryBackend.check_open = lambda self: None
    """,
    "ForgetfulAfterClosing": """
        async def close(self):
            self.closed = True
            self.stores.pop(self.dsn, None)
        MemoryBackend.close = close
    """,
    "AlwaysToPurge": """
        async def purge(self):
            return True
        MemoryBackend.purge = purge
    """,
    "NoVersion": """
        async def schema_versions(cls, dsn):
            return SchemaVersions(1, 1)
        MemoryBackend.schema_versions = classmethod(schema_versions)
    """,
}
"""Programs that break the example, each of which has to make the suite fail."""


PLANTING = """
from memory_backend import HeadRead, Records, SchemaVersions
import hypothesis

MISTAKES = {mistakes!r}


@pytest.fixture(autouse=True)
def planted(request):
    kept = {{broken: dict(vars(broken)) for broken in (Records, MemoryBackend)}}
    exec(MISTAKES[request.cls.__name__.removeprefix("Test")], globals())
    yield
    for broken, attributes in kept.items():
        for name in {{*vars(broken), *attributes}}:
            if name in attributes and vars(broken).get(name) is not attributes[name]:
                setattr(broken, name, attributes[name])


Suite = TestMemoryBackend
del TestMemoryBackend
globals().update({{f"Test{{name}}": type(f"Test{{name}}", (Suite,), {{}}) for name in MISTAKES}})
"""
# What fails need not be reduced.
UNREDUCED = "import hypothesis\nhypothesis.settings.register_profile('u', phases=[hypothesis.Phase.generate])\n"


def failures(installed: Path, folder: Path, *options: str) -> dict[str, set[str]]:
    """The cases that fail, of each mistake."""
    mistakes = {name: textwrap.dedent(mistake) for name, mistake in MISTAKES.items()}
    (folder / "test_memory.py").write_text(SUITE + PLANTING.format(mistakes=mistakes))
    (folder / "conftest.py").write_text(UNREDUCED + "hypothesis.settings.load_profile('u')\n")
    done = run(installed, folder, "-m", "pytest", "-q", "--tb=no", "-rf", "-p", "no:cacheprovider", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, set[str]] = {name: set() for name in MISTAKES}
    for name, case in re.findall(r"^FAILED test_memory\.py::Test(\w+)::(\w+)", done.stdout, re.MULTILINE):
        found[name].add(case)
    return found


def test_each_planted_mistake_is_found(installed: Path, tmp_path: Path) -> None:
    found = failures(installed, tmp_path, "-k", "not test_batches_leave")
    assert not [name for name, cases in found.items() if not cases]


def test_generated_batches_find_mistakes_too(installed: Path, tmp_path: Path) -> None:
    names = ["ExpiredCounted", "RowsLeftBehind", "StaleHeads", "NeighboursDisturbed"]
    found = failures(installed, tmp_path, "-k", f"test_batches_leave and ({' or '.join(names)})")
    assert {name for name, cases in found.items() if cases} == set(names)


def test_a_scheme_is_added_by_an_entry_point(installed: Path, tmp_path: Path) -> None:
    information = tmp_path / "memory_backend-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-backend\nVersion: 1\n")
    (information / "entry_points.txt").write_text(ENTRY_POINT.replace('project.entry-points."', "").replace('"', ""))
    program = "from rstored.backends import backend_class; print(backend_class('memory://store').__name__)"
    assert run(installed, tmp_path, "-c", program).stdout == "MemoryBackend\n"
    refused = "from rstored.backends import backend_class; backend_class('other://store')"
    assert "redis://" in (told := run(installed, tmp_path, "-c", refused).stderr)
    assert told.rstrip().endswith("memory://")


def test_without_it_the_scheme_is_unknown() -> None:
    with pytest.raises(Problem, match="the DSN must begin with one of sqlite://"):
        backend_class("memory://store")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("rstored.backends:Nobody", "rstored.backends:Nobody, which does not exist"),
        ("nowhere:Backend", "nowhere is missing"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, reason: str
) -> None:
    information = tmp_path / "own_backend-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: own-backend\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[rstored.backends]\nown = {names}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Problem, match=reason):
        backend_class("own://store")
