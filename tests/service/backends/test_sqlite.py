"""What is particular to SQLite: the DSN, the file and what may be wrong with it, its tables, several processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.reading import read
from tests.waiting import until

from rstored.backends import backend_class
from rstored.backends.abc import (
    Commit,
    CountRead,
    DeleteRecord,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Row,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.sqlite import SQLiteBackend, connections
from rstored.backends.sqlite.dsn import database_path
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

NS = namespace_place("ns")


def kv(key: str) -> Place:
    return Place("ns", Kind.KV, key)


def writing(*writes: Write) -> Update[None]:
    def plan(heads):
        return Commit(writes, None)
        yield

    return Update(tuple({write.place: None for write in writes}), plan)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def writer_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "sqlite-writer"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Every connection to SQLite that the test and what it tests have opened."""
    found: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def keeping(*arguments: Any, **options: Any) -> sqlite3.Connection:
        found.append(connect(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(sqlite3, "connect", keeping)
    return found


@pytest.fixture
async def backend(opened: list[sqlite3.Connection], path: Path) -> AsyncIterator[SQLiteBackend]:
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    yield backend
    await backend.close()


# --- the DSN -----------------------------------------------------------------------------------------------


def test_dsn_forms() -> None:
    assert database_path("sqlite://store.db") == Path("store.db")
    assert database_path("sqlite:///store.db") == Path("store.db")
    assert database_path("sqlite:///./data/a b.db") == Path("data/a b.db")
    assert database_path("sqlite:////var/lib/store.db") == Path("/var/lib/store.db")


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite://:memory:", "would forget every write"),
        ("sqlite:///:memory:", "would forget every write"),
        ("sqlite:///store.db?mode=ro", "takes no parameters"),
    ],
)
def test_dsns_that_are_refused(dsn: str, reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        database_path(dsn)


def test_the_scheme_picks_the_backend() -> None:
    assert backend_class("sqlite:///x.db") is SQLiteBackend
    for dsn in ("store.db", "mysql://x", ""):
        with pytest.raises(Problem, match="sqlite://"):
            backend_class(dsn)


# --- the file ----------------------------------------------------------------------------------------------


async def refusal(path: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        await SQLiteBackend.open(f"sqlite:///{path}")
    assert "\n" not in caught.value.detail
    return caught.value


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere, so what a permission does shows only as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_the_file_is_in_wal_mode_and_synchronous_and_ours(
    backend: SQLiteBackend, opened: list[sqlite3.Connection]
) -> None:
    assert opened
    for connection in opened:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"rsto"),)
    assert backend.capabilities.local_reads


async def test_a_missing_folder(tmp_path: Path) -> None:
    problem = await refusal(tmp_path / "none" / "store.db")
    assert problem.code == "backend-unavailable"
    assert "there is no folder" in problem.detail


async def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    assert (await refusal(tmp_path)).code == "backend-unavailable"


async def test_a_file_that_is_not_a_database(path: Path) -> None:
    path.write_bytes(b"no database at all, " * 1000)
    problem = await refusal(path)
    assert problem.code == "backend-corrupt"
    assert "not a SQLite database" in problem.detail


async def test_a_truncated_database(path: Path) -> None:
    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    path.write_bytes(path.read_bytes()[:5000])
    assert (await refusal(path)).code == "backend-corrupt"


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE record (id)")
    connection.close()
    path.chmod(0o644)
    before = path.read_bytes()
    assert "another program" in (await refusal(path)).detail
    assert path.read_bytes() == before
    assert modes(path.parent) == {path.name: 0o644}


@contextmanager
def under_umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """What may be done with each file of a folder."""
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277])
@pytest.mark.parametrize("linked", [False, True])
async def test_the_file_is_its_owners_alone_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, linked: bool
) -> None:
    path = tmp_path / "folder" / "store.db"
    path.parent.mkdir()
    opened = tmp_path / "link.db" if linked else path
    if linked:
        opened.symlink_to(path)
    seen: list[dict[str, int]] = []
    connect = sqlite3.connect

    def watching(*arguments: Any, **options: Any) -> sqlite3.Connection:
        """Look before SQLite has touched anything, and at every step from then on."""
        seen.append(modes(path.parent))
        connection = connect(*arguments, **options)
        connection.set_progress_handler(lambda: seen.append(modes(path.parent)), 1)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watching)
    with under_umask(mask):
        backend = await SQLiteBackend.open(f"sqlite:///{opened}")
        for number in range(100):
            assert await backend.update([writing(PutHead(NS, Head(b"%d" % number)))]) == [None]
    seen.append(modes(path.parent))
    await backend.close()
    assert seen[-1].keys() == {"store.db", "store.db-wal", "store.db-shm"}
    assert "store.db-journal" in {name for found in seen for name in found}
    assert {mode for found in seen for mode in found.values()} == {0o600}


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o640), (0o666, 0o660), (0o640, 0o640), (0o600, 0o600)])
async def test_a_file_that_is_there_is_hidden_from_others_and_its_group_keeps_what_it_has(
    path: Path, before: int, after: int
) -> None:
    first = await SQLiteBackend.open(f"sqlite:///{path}")
    await first.update([writing(PutHead(NS, Head(b"")))])
    assert len(modes(path.parent)) == 3
    for file in path.parent.iterdir():
        file.chmod(before)
    second = await SQLiteBackend.open(f"sqlite:///{path}")
    assert set(modes(path.parent).values()) == {after}
    await second.close()
    await first.close()
    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    assert modes(path.parent) == {"store.db": after}


async def test_a_read_only_file_or_folder(tmp_path: Path, path: Path) -> None:
    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    path.chmod(0o444)
    # Whoever runs the tests, the folders above have to let somebody else through.
    opened = [folder for folder in tmp_path.parents if folder.stat().st_uid == os.geteuid() and folder != Path("/")]
    modes = {folder: folder.stat().st_mode for folder in [tmp_path, *opened]}
    try:
        for folder in modes:
            folder.chmod(0o755)
        with without_privileges():
            problem = await refusal(path)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert problem.code == "backend-unavailable"
    assert "read-only" in problem.detail


async def test_damage_is_reported_as_such(path: Path) -> None:
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    puts = [PutHead(kv(f"{n:04}"), Head(b"m" * 100)) for n in range(2000)]
    assert await backend.update([writing(PutHead(NS, Head(b"")), *puts)]) == [None]
    await backend.close()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(4096 * 8, size, 4096):
            file.seek(page)
            file.write(b"\xaa" * 4096)
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    try:
        (result,) = await backend.read([(Listing("ns", Kind.KV, limit=2000),)])
        assert isinstance(result, Problem)
        assert result.code == "backend-corrupt"
        (answer,) = await backend.update([writing(*puts)])
        assert isinstance(answer, Problem)
        assert answer.code == "backend-corrupt"
    finally:
        await backend.close()


async def test_a_full_disk_fails_the_write_that_does_not_fit_and_no_other(
    backend: SQLiteBackend, opened: list[sqlite3.Connection]
) -> None:
    assert await backend.update([writing(PutHead(NS, Head(b"")))]) == [None]
    for connection in opened:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    small, large = (writing(PutHead(kv(key), Head(b"", size * b"x"))) for key, size in (("s", 10), ("l", 100_000)))
    results = await backend.update([small, large, small])
    assert results[0] is results[2] is None
    assert results[1].code == "storage-full"
    assert await backend.read([(HeadRead(kv("s")), HeadRead(kv("l")))]) == [[Head(b"", b"x" * 10), None]]


async def test_a_lock_that_another_process_keeps(
    path: Path, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await backend.update([writing(PutHead(NS, Head(b"")))] * 3)
    assert {result.code for result in results} == {"backend-unavailable"}
    assert "locked" in results[0].detail
    other.execute("ROLLBACK")
    other.close()
    assert await backend.update([writing(PutHead(NS, Head(b"")))]) == [None]


async def test_a_busy_process_is_waited_for_in_short_steps(
    path: Path, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            other.execute("ROLLBACK")

    monkeypatch.setattr("time.sleep", pause)
    assert await backend.update([writing(PutHead(NS, Head(b"")))]) == [None]
    assert len(pauses) == 20
    assert max(pauses) < 0.001
    other.close()


async def test_an_opening_that_is_cancelled_does_not_hold_up_the_event_loop(path: Path, backend: SQLiteBackend) -> None:
    others = writer_threads()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        # An opening waits for this lock, in its thread.
        other.execute("BEGIN IMMEDIATE")
        opening = asyncio.create_task(SQLiteBackend.open(f"sqlite:///{path}"))
        await asyncio.sleep(0)
        assert len(writer_threads() - others) == 1
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        # It waits still.
        assert len(writer_threads() - others) == 1
        other.execute("ROLLBACK")
    until(lambda: writer_threads() <= others)


async def test_a_closing_that_is_cancelled_leaves_no_thread(opened: list[sqlite3.Connection], path: Path) -> None:
    others = writer_threads()
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing_meanwhile = asyncio.create_task(backend.update([writing(PutHead(NS, Head(b"")))]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        other.execute("ROLLBACK")
    assert await writing_meanwhile == [None]
    until(lambda: writer_threads() <= others)
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


async def test_ping_notices_that_the_file_is_gone(path: Path, backend: SQLiteBackend) -> None:
    await backend.ping()
    path.unlink()
    with pytest.raises(Problem, match="deleted, moved, replaced or emptied") as caught:
        await backend.ping()
    assert caught.value.code == "backend-unavailable"


async def test_no_problem_at_run_time_names_a_path(path: Path, backend: SQLiteBackend) -> None:
    await backend.close()
    with pytest.raises(Problem) as caught:
        await backend.ping()
    assert str(path) not in caught.value.detail


# --- erasing -----------------------------------------------------------------------------------------------


async def test_purge_leaves_nothing_behind(path: Path, backend: SQLiteBackend) -> None:
    series = [Place("ns", Kind.TS, str(n)) for n in range(3)]
    writes: list[Write] = [PutHead(NS, Head(b""))]
    for place in series:
        writes += [PutHead(place, Head(b"")), *(PutRow(place, n, Row(b"1", b"x", b"by")) for n in range(3))]
    writes += [PutHead(kv(str(n)), Head(b"", b"v", 5)) for n in range(1500)]
    assert await backend.update([writing(*writes)]) == [None]

    def left() -> dict[str, int]:
        connection = sqlite3.connect(path)
        try:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
        finally:
            connection.close()

    full = left()
    assert (full["record"], full["record_row"]) == (1 + 1 + 3 + 1500, 9)
    assert await backend.update([writing(DeleteRecord(series[0])), writing(DeleteRecord(NS))]) == [None, None]
    while await backend.purge():
        pass
    # The root record stays.
    assert left() == {"record": 1, "record_row": 0, "trash": 0, "record_count": 0, "schema_version": 1} | {
        name: n for name, n in left().items() if name.startswith("sqlite_")
    }


async def test_an_interrupted_purge_goes_on_after_the_next_start(path: Path) -> None:
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    rows = [PutRow(Place("ns", Kind.TS, "s"), 0, Row(b"%05d" % n, b"")) for n in range(3000)]
    head = PutHead(Place("ns", Kind.TS, "s"), Head(b""))
    assert await backend.update([writing(PutHead(NS, Head(b"")), head, *rows)]) == [None]
    assert await backend.update([writing(DeleteRecord(NS))]) == [None]
    assert await backend.purge()
    await backend.close()
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    while await backend.purge():
        pass
    await backend.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT (SELECT count(*) FROM record_row), count(*) FROM trash").fetchone() == (0, 0)
    connection.close()


# --- several processes -------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from rstored.backends.abc import *
from rstored.backends.sqlite import SQLiteBackend

async def run(dsn, name, n):
    backend = await SQLiteBackend.open(dsn)
    ns, total = namespace_place("ns"), Place("ns", Kind.KV, "total")

    def add(heads):
        (head,) = yield (HeadRead(total),)
        count = int(head.value) + 1 if head else 1
        create = [] if heads[ns] else [PutHead(ns, Head(b""))]
        return Commit([*create, PutHead(total, Head(b"", b"%d" % count))], count)

    def put(key):
        def plan(heads):
            return Commit([PutHead(Place("ns", Kind.KV, key), Head(b""))], None)
            yield
        return Update((Place("ns", Kind.KV, key),), plan)

    for i in range(n):
        results = await backend.update([Update((total,), add), put(f"{name}-{i}")])
        assert isinstance(results[0], int), results
        print(f"{name}-{i}", flush=True)
    await backend.close()

asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def start_writer(path: Path, name: str, n: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}", name, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_two_processes_write_one_file_and_lose_nothing(path: Path) -> None:
    writers = [start_writer(path, name, 100) for name in "ab"]
    for writer in writers:
        _, errors = await asyncio.to_thread(writer.communicate, timeout=60)
        assert writer.returncode == 0, errors.decode()
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    total, counts = await read(backend, HeadRead(kv("total")), CountRead("ns", 0))
    await backend.close()
    assert total == Head(b"", b"200")
    assert counts[Kind.KV] == 201


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    writer = start_writer(path, "k", 1_000_000)
    assert writer.stdout is not None
    assert writer.stderr is not None
    acknowledged = [writer.stdout.readline().decode().strip() for _ in range(50)]
    await asyncio.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.read().decode().split("\n")[:-1]
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    writer.stderr.close()
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    total, *heads = await read(backend, HeadRead(kv("total")), *(HeadRead(kv(key)) for key in acknowledged))
    assert heads == [Head(b"")] * len(acknowledged)
    assert int(total.value) >= len(acknowledged)
    await backend.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# --- what a read sees --------------------------------------------------------------------------------------


async def test_reads_of_one_round_are_of_one_moment_and_no_older(backend, path):
    await backend.update([writing(PutHead(NS, Head(b"")), PutHead(kv("k"), Head(b"", b"old")))])

    async def read() -> bytes:
        ((head,),) = await backend.read([(HeadRead(kv("k")),)])
        return head.value

    def written_elsewhere(value: bytes) -> None:
        with sqlite3.connect(path) as other:
            other.execute("UPDATE record SET value = ? WHERE key = 'k'", (value,))
        other.close()

    assert await read() == b"old"
    written_elsewhere(b"new")
    assert await read() == b"old"
    backend.renew()
    assert await read() == b"new"
    written_elsewhere(b"newer")
    await asyncio.sleep(0)
    assert await read() == b"newer"
