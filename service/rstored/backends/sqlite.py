"""The SQLite backend: one file, read on the event loop, written by one thread.

The file is in WAL mode, so a read sees the last commit and waits for nobody, and a page in memory is read in less
time than a hop to a thread takes. All writes of a batch are one transaction (group commit). Several processes may
use one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy.dialects import sqlite as sqlite_dialect

from rstored.backends.abc import (
    COUNTED,
    Backend,
    Capabilities,
    Commit,
    CountRead,
    DeleteRecord,
    DeleteRow,
    DeleteRows,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Query,
    Read,
    Row,
    RowScan,
    SchemaVersions,
    Slice,
    UnfitStorage,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.migrations import ROOT_OF_STORE, SCHEMA_VERSION, pending
from rstored.backends.schema import ROOT_ID, Statements
from rstored.problems import Problem

__all__ = ["SQLiteBackend", "database_path"]

logger = logging.getLogger("rstored.sqlite")

_APPLICATION_ID: Final = int.from_bytes(b"rsto")
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 512
_PRIVATE: Final = stat.S_IRUSR | stat.S_IWUSR
_BUSY_SECONDS: Final = 10.0
_BUSY_PAUSE_SECONDS: Final = 0.0002
_SWITCH_SECONDS: Final = 5e-6
_BEGIN: Final = "BEGIN IMMEDIATE"
_PURGE_ROWS_MAX: Final = 1_000
_PURGE_BYTES_MAX: Final = 16 * 2**20

_DIALECT: Final = sqlite_dialect.dialect(paramstyle="qmark")
_SQL: Final = Statements(_DIALECT)

# Many records of one kind in one namespace are found by one statement, from as many on as make up for its cost.
_TOGETHER_MIN: Final = 4
_CHILDREN: Final = """
    SELECT wanted.key, record.id, meta, expires_ms
    FROM json_each(?) AS wanted CROSS JOIN record ON parent_id = ? AND kind = ? AND record.key = wanted.value
"""
_HEADS: Final = """
    SELECT wanted.key, meta, record.value, expires_ms
    FROM json_each(?) AS wanted CROSS JOIN record
    ON parent_id = (SELECT id FROM record WHERE parent_id = ? AND kind = ? AND key = ?)
    AND kind = ? AND record.key = wanted.value
"""
_BOUNDED_HEADS: Final = _HEADS.replace(
    "record.value", "CASE WHEN length(record.value) > ? THEN x'' ELSE record.value END", 1
)

T = TypeVar("T")


def database_path(dsn: str) -> Path:
    """The file that a DSN names; raises :class:`Problem` if it names none.

    ``sqlite:///data/store.db`` and ``sqlite://store.db`` are relative to the working directory; an absolute path
    takes four slashes.

    >>> database_path("sqlite:////var/lib/rstore/store.db")
    PosixPath('/var/lib/rstore/store.db')
    >>> database_path("sqlite://store.db")
    PosixPath('store.db')
    """
    rest = dsn.removeprefix("sqlite://")
    name = rest[1:] if rest.startswith("/") else rest
    if not name or name.endswith("/"):
        raise Problem("backend-unavailable", "the DSN names no file: write sqlite:///path/to/file.db")
    if str(Path(name)) == ":memory:":
        raise Problem("backend-unavailable", "a database in memory would forget every write: name a file in the DSN")
    if "?" in name or "\0" in name:
        raise Problem("backend-unavailable", "a SQLite DSN takes no parameters: write sqlite:///path/to/file.db")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise Problem("backend-unavailable", "the DSN names a file by something that is not text") from None
    return Path(name)


class SQLiteBackend(Backend):
    """A store in one SQLite file."""

    capabilities = Capabilities(local_reads=True)

    def __init__(self, files: _Files, executor: ThreadPoolExecutor, writer: _Writer, reader: _Reader) -> None:
        self._files = files
        self._executor = executor
        self._writer = writer
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._closed = False

    @classmethod
    async def open(cls, dsn: str) -> SQLiteBackend:
        """Open or create the file that ``dsn`` names (see :func:`database_path`)."""
        path = database_path(dsn)
        _check_path(path)
        # The writer thread needs the interpreter's lock again after every statement. A busy event loop lets go of it
        # often but for an instant, and with Python's default of 5 ms the thread would hardly ever get it: measured
        # under load, a write then took seconds instead of milliseconds.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        try:
            files, writing, reading = await asyncio.get_running_loop().run_in_executor(executor, _connect_both, path)
        except sqlite3.Error as error:
            executor.shutdown()
            raise _translated(error, f"the database file {str(path)!r}") from error
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(files, executor, _Writer(writing, files), _Reader(reading))

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """Read from the file; one that is not there, or is empty, has version 0."""
        path = database_path(dsn)
        _check_path(path)
        if not path.exists() or path.stat().st_size == 0:
            return SchemaVersions(0, SCHEMA_VERSION)
        try:
            with contextlib.closing(_connect(path)) as connection:
                connection.execute("PRAGMA query_only = ON")
                return SchemaVersions(_version(connection), SCHEMA_VERSION)
        except sqlite3.Error as error:
            raise _translated(error, f"the database file {str(path)!r}") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._in_thread(self._writer.connection.close)
        self._reader.connection.close()
        self._executor.shutdown()

    async def ping(self) -> None:
        self._check_open()
        self._files.check()
        self._files.check_mode()
        try:
            _check_schema(self._reader.connection)
        except sqlite3.Error as error:
            failure = _translated(error)
            if isinstance(failure, Problem) and failure.code == "backend-corrupt":
                # What is written to such a file may not be there when it is opened again.
                failure = UnfitStorage(failure.detail)
            raise failure from error

    def describe(self) -> dict[str, str]:
        return {
            "name": "sqlite",
            "version": sqlite3.sqlite_version,
            "durability": "an acknowledged write is synced to disk (WAL, synchronous=FULL): it survives a crash of "
            "the process and of the machine",
        }

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        reader = self._reader
        answers: list[list[Any] | Problem] = []
        for query in queries:
            try:
                if not reader.connection.in_transaction:
                    # Half of what a read costs is to begin and end its transaction, so those of one round of the event
                    # loop share one. It sees at least what was committed when the round began, and whoever asks in
                    # it began to ask before, or else calls renew(): no answer to a later write has reached them.
                    reader.begin()
                    self._loop.call_soon(self.renew)
                answers.append(reader.answer(query))
            except sqlite3.Error as error:
                self._check_open()
                failure = _translated(error)
                if not isinstance(failure, Problem):
                    raise
                answers.append(failure)
        return answers

    def renew(self) -> None:
        if not self._closed:
            self._reader.end()

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        return await self._in_thread(self._writer.update, updates)

    async def purge(self) -> bool:
        self._check_open()
        try:
            return await self._in_thread(self._writer.purge)
        except sqlite3.Error as error:
            raise _translated(error) from error

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("backend-unavailable", "the database is closed")


# --- opening -----------------------------------------------------------------------------------------------


def _check_path(path: Path) -> None:
    """Refuse a missing folder, and a short file that SQLite did not write, which SQLite would take for an empty one."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        folder_is_there = path.parent.is_dir()
    except OSError as error:
        raise Problem("backend-unavailable", f"the file {str(path)!r} cannot be opened: {error.strerror}") from None
    if not folder_is_there:
        hint = "" if path.is_absolute() else "; an absolute path takes four slashes: sqlite:////…"
        raise Problem("backend-unavailable", f"there is no folder {str(path.parent)!r}: create it{hint}")
    # A longer one is left to SQLite: if this process has it open, to open and close it here would drop the locks on it.
    if not 0 < size < _HEADER_BYTES:
        return
    try:
        begins = path.read_bytes()[: len(_MAGIC)]
    except OSError:
        # SQLite fails on it too, and the reason that it gives is translated like any other.
        return
    if begins != _MAGIC:
        code, detail = _FAILURES[sqlite3.SQLITE_NOTADB]
        raise Problem(code, detail.format(file=f"the file {str(path)!r}"))


def _create(path: Path) -> None:
    """Make the file if it is not there, for its owner alone. SQLite would make it for whomever the umask lets in."""
    try:
        # Opened only if it is new: to close a file drops the locks that this process has on it.
        file = os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    except OSError:
        # It is there, or cannot be made; then SQLite fails too, and the reason that it gives is translated.
        return
    os.fchmod(file, _PRIVATE)
    os.close(file)


def _hide_from_others(path: Path) -> None:
    """Take from a store that is there what accounts may do that neither own it nor are in its group.

    An earlier release made it for whomever the umask let in. What the group may do stays: somebody may have set it. New
    files beside it get its mode from SQLite.
    """
    path = Path(os.path.realpath(path))
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & stat.S_IRWXO:
                file.chmod(mode & ~stat.S_IRWXO)
        except FileNotFoundError:
            pass
        except OSError:
            logger.warning("every account of this machine may open a file of the store", extra={"file": str(file)})


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    # KiB, negated. Each of the two connections may come to hold as much; more gains nothing that the system's own
    # cache does not give, and a long series going through would fill it.
    connection.execute("PRAGMA cache_size = -8192")
    return connection


class _Files:
    """The files of an open database: the file itself, its log and the log's index.

    SQLite keeps them open and goes on with them when they were deleted, renamed, replaced or emptied: what is written
    then is lost with the process, or with the next one that opens what is there instead. So they are compared with what
    is under their names. ``gone`` says whether they differed when they were compared last.
    """

    def __init__(self, path: Path) -> None:
        self.gone = False
        self._path = path
        # SQLite follows links, and names the others after what it finds.
        real = os.path.realpath(path)
        self._names = (str(path), f"{real}-wal", f"{real}-shm")
        try:
            self._found = self._look()
        except OSError as error:
            raise Problem("backend-unavailable", f"the file {str(path)!r} was deleted while it was opened") from error

    def check(self) -> None:
        """Return if all of them are where they were; otherwise raise :class:`UnfitStorage`."""
        try:
            self.gone = self._look() != self._found
        except OSError:
            self.gone = True
        if self.gone:
            raise UnfitStorage(
                "the database file, or its -wal or -shm, was deleted, moved, replaced or emptied while in use: put it "
                "back, or restart the service to use what is there now"
            )

    def check_mode(self) -> None:
        """Return if the file may be written; otherwise raise :class:`UnfitStorage`."""
        if not os.access(self._path, os.W_OK):
            raise UnfitStorage("the database file was made read-only while in use: make it writable again")

    def _look(self) -> tuple[list[tuple[int, int]], bool]:
        """Which files are there, and whether the first is empty, as it is while a copy is written over it."""
        found = [os.stat(name) for name in self._names]
        return list(map(_identity, found)), found[0].st_size == 0


def _identity(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from any other one that has been, or will be, under its name."""
    return status.st_dev, status.st_ino


def _connect_both(path: Path) -> tuple[_Files, sqlite3.Connection, sqlite3.Connection]:
    """The files, the connection for writing, and the one for reading."""
    _create(path)
    before = _identity(path.stat()) if path.exists() else None
    writing = _connect_for_writing(path)
    try:
        reading = _connect(path)
        reading.execute("PRAGMA query_only = ON")
        # A first read opens the log.
        reading.execute("SELECT version FROM schema_version").fetchone()
        files = _Files(path)
        if before not in (None, _identity(path.stat())):
            raise Problem(
                "backend-unavailable", f"the file {str(path)!r} was replaced while it was opened: start again"
            )
    except BaseException:
        writing.close()
        raise
    return files, writing, reading


def _connect_for_writing(path: Path) -> sqlite3.Connection:
    """Connect for writing, having made sure that the file is ours, is writable and has the present schema."""
    connection = _connect(path)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # The lock keeps other processes that start now waiting, and shows that the file can be written.
        connection.execute(_BEGIN)
        _migrate(connection)
        connection.execute("COMMIT")
        _use_wal(connection)
        _hide_from_others(path)
        # Pages of the log before it is copied into the file; a smaller log is copied more often than it helps.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
        # What is deleted is overwritten where that costs no further write.
        connection.execute("PRAGMA secure_delete = FAST")
        # From here on it waits for one lock only, at the beginning of each transaction, in a way of our own.
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version == 0:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema_version VALUES (0)")
    for statement in pending(version, _DIALECT):
        connection.execute(statement)
    connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION,))


def _check_schema(connection: sqlite3.Connection) -> None:
    """Return if the tables are there, as this program made them; otherwise raise :class:`UnfitStorage`."""
    try:
        found = connection.execute(ROOT_OF_STORE).fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        found = None
    if found is None:
        raise UnfitStorage(_CHANGED)


def _version(connection: sqlite3.Connection) -> int:
    """The version of the schema, 0 in an empty database. Raises :class:`Problem` if it is not ours."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0:
        return 0
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != _APPLICATION_ID:
        raise Problem("backend-unavailable", "the file is the SQLite database of another program: name another file")
    (version,) = connection.execute("SELECT version FROM schema_version").fetchone()
    return int(version)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn on WAL mode, which is kept in the file."""
    (mode,) = _when_free(connection, "PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Problem("backend-unavailable", "the file system cannot hold a SQLite WAL database: use a local disk")


def _when_free(connection: sqlite3.Connection, statement: str) -> sqlite3.Cursor:
    """Execute a statement as soon as no other process holds the lock that it needs.

    SQLite does not wait for some locks at all, and for the others ever longer, up to a tenth of a second at a time:
    so it would seldom come upon the moment that a busy process leaves between two of its batches.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE_SECONDS)


# --- reading -----------------------------------------------------------------------------------------------


class _Reader:
    """Answers reads on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        # What finds one row at most is at its end at once, so one cursor does for all of that.
        self._execute = connection.cursor().execute
        # A scan may stop before its end, so each has a cursor of its own.
        self._scan = connection.execute
        self._answers: dict[type[Any], Callable[[Any], Any]] = {
            HeadRead: self._head,
            RowScan: self._rows,
            Listing: self._listing,
            CountRead: self._counts,
            ExpiredRead: self._expired,
        }

    def begin(self) -> None:
        """Answer from one snapshot, which is taken with the first read from now on."""
        self._execute("BEGIN")

    def end(self) -> None:
        """Let go of the snapshot."""
        # SQLite itself ends the transaction after some failures; and a damaged file can only be rolled back.
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    def answer(self, query: Query) -> list[Any]:
        if len(query) < _TOGETHER_MIN:
            return [self._answers[type(read)](read) for read in query]
        answers: list[Any] = []
        for alike, reads in itertools.groupby(query, _heads_alike):
            if alike is None:
                answers += [self._answers[type(read)](read) for read in reads]
            else:
                answers += self._heads(*alike, [read.place.key for read in reads])  # type: ignore[union-attr]
        return answers

    def _heads(self, namespace: str, kind: Kind, bytes_max: int | None, keys: list[str]) -> list[Head | None]:
        """The heads of records of one kind in one namespace."""
        sql, bound = (_HEADS, ()) if bytes_max is None else (_BOUNDED_HEADS, (bytes_max,))
        heads: list[Head | None] = [None] * len(keys)
        for position, *head in self._scan(sql, (*bound, _json(keys), ROOT_ID, int(_NAMESPACE), namespace, int(kind))):
            heads[position] = Head._make(head)
        return heads

    def _head(self, read: HeadRead) -> Head | None:
        (namespace, kind, key), bytes_max = read
        sql, bound = (_SQL.head, ()) if bytes_max is None else (_SQL.bounded_head, (bytes_max,))
        # An int of a subclass takes sqlite3 a slower way, so kinds are bound as plain ones.
        row = self._execute(sql, (*bound, namespace, int(kind), key)).fetchone()
        return None if row is None else Head._make(row)

    def _rows(self, scan: RowScan) -> Slice[Row]:
        rows = map(Row._make, self._scan(*_SQL.scan_query(scan)))
        return _slice(rows, scan.limit, scan.bytes_max, lambda row: len(row.value))

    def _listing(self, listing: Listing) -> Slice[tuple[str, Head]]:
        rows = ((row[0], Head._make(row[1:])) for row in self._scan(*_SQL.listing_query(listing)))
        return _slice(rows, listing.limit, listing.bytes_max, lambda item: len(item[1].value))

    def _counts(self, read: CountRead) -> dict[Kind, int]:
        counts = dict.fromkeys(COUNTED, 0)
        for kind, n in self._scan(_SQL.counts, (read.namespace,)):
            counts[Kind(kind)] += n
        for kind, n in self._scan(_SQL.expired_counts, (read.now_ms, read.namespace)):
            # What is not counted expires too.
            if kind in counts:
                counts[Kind(kind)] -= n
        return counts

    def _expired(self, read: ExpiredRead) -> list[Place]:
        rows = self._scan(_SQL.expired, (read.now_ms, read.limit))
        return [Place(namespace, Kind(kind), key) for namespace, kind, key in rows]


def _heads_alike(read: Read) -> tuple[str, Kind, int | None] | None:
    """What reads of heads have in common if one statement can answer them; None for any other read."""
    return (read.place.namespace, read.place.kind, read.bytes_max) if type(read) is HeadRead else None


def _json(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()


def _slice(rows: Iterable[T], limit: int | None, bytes_max: int | None, size_of: Callable[[T], int]) -> Slice[T]:
    """The first rows within the limits. It reads to the end or leaves the statement to be reset as it is dropped."""
    if bytes_max is None:
        items = list(rows)
        more = limit is not None and len(items) > limit
        if more:
            items.pop()
        return Slice(items, more)
    items = []
    size = 0
    for row in rows:
        if items and (size >= bytes_max or len(items) == limit):
            return Slice(items, True)
        items.append(row)
        size += size_of(row)
    return Slice(items, False)


# --- writing -----------------------------------------------------------------------------------------------


class _Writer:
    """Carries out updates on one connection. Everything here runs on the writer thread."""

    def __init__(self, connection: sqlite3.Connection, files: _Files) -> None:
        self.connection = connection
        self._files = files
        self._reader = _Reader(connection)
        cursor = connection.cursor()
        self._execute, self._execute_many = cursor.execute, cursor.executemany
        # Ids and heads of namespaces, as the transaction under way found them.
        self._namespaces: dict[Place, tuple[int | None, Head | None]] = {}
        # What it adds to record_count, by parent and kind.
        self._counted: dict[tuple[int, int], int] = {}

    def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        """Carry out the updates in one transaction, or, if a statement fails in it, each in one of its own."""
        try:
            if self._files.gone:
                self._files.check()
            self._begin()
        except UnfitStorage as problem:
            return [UnfitStorage(problem.detail) for _ in updates]
        except sqlite3.Error as error:
            return [_translated(error) for _ in updates]
        self._namespaces.clear()
        try:
            results = [self._run(update) for update in updates]
            self._commit()
            # What was committed to a file that is gone is lost with it, so nobody is told that it is there.
            self._files.check()
        except UnfitStorage as problem:
            return [UnfitStorage(problem.detail) for _ in updates]
        except Exception as error:
            self._roll_back()
            if len(updates) == 1:
                return [_translated(error) if isinstance(error, sqlite3.Error) else error]
            return [result for update in updates for result in self.update([update])]
        return results

    def purge(self) -> bool:
        """Erase a bounded part of what is in the trash; True if there may be more."""
        self._files.check()
        if self._execute(_SQL.some_trash).fetchone() is None:
            return False
        self._begin()
        try:
            rows_left = _PURGE_ROWS_MAX
            while rows_left > 0 and (found := self._execute(_SQL.some_trash).fetchone()) is not None:
                rows_left -= self._erase(found[0], rows_left)
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return True

    def _begin(self) -> None:
        _when_free(self.connection, _BEGIN)
        try:
            _check_schema(self.connection)
        except BaseException:
            self._roll_back()
            raise

    def _commit(self) -> None:
        self._add_counts()
        self._execute("COMMIT")

    def _roll_back(self) -> None:
        self._counted.clear()
        # SQLite itself rolls back after some failures.
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    def _run(self, update: Update[Any]) -> Any:
        """Run one plan and what it wants written; returns its answer, or the exception that it raised."""
        ids: dict[Place, int | None] = {}
        heads: dict[Place, Head | None] = {}
        if len(update.places) < _TOGETHER_MIN:
            for place in update.places:
                self._find(place, ids, heads)
        else:
            self._find_together(update.places, ids, heads)
        try:
            generator = update.plan(heads)
            query = next(generator)
            while True:
                query = generator.send(self._answer(query))
        except StopIteration as stop:
            commit: Commit[Any] = stop.value
        except sqlite3.Error:
            raise
        except Exception as error:
            return error
        replaced: list[tuple[int | None, bytes, bytes, int]] = []
        for write in commit.writes:
            self._write(write, ids, replaced)
        if replaced:
            self._execute_many(_SQL.update_record, replaced)
        return commit.answer

    def _find(self, place: Place, ids: dict[Place, int | None], heads: dict[Place, Head | None]) -> None:
        namespace, kind, key = place
        parent_id = self._find_parent(namespace, kind, ids, heads)
        ids[place], heads[place] = _NOTHING if parent_id is None else self._child(parent_id, kind, key)

    def _find_together(
        self, places: Sequence[Place], ids: dict[Place, int | None], heads: dict[Place, Head | None]
    ) -> None:
        groups: dict[tuple[str, Kind], list[Place]] = {}
        for place in places:
            groups.setdefault(place[:2], []).append(place)
        for (namespace, kind), wanted in groups.items():
            parent_id = self._find_parent(namespace, kind, ids, heads)
            ids.update(dict.fromkeys(wanted))
            heads.update(dict.fromkeys(wanted))
            if parent_id is not None:
                rows = self._execute(_CHILDREN, (_json([place.key for place in wanted]), parent_id, int(kind)))
                for position, record_id, meta, expires in rows:
                    ids[wanted[position]], heads[wanted[position]] = record_id, Head(meta, b"", expires)

    def _find_parent(
        self, namespace: str, kind: Kind, ids: dict[Place, int | None], heads: dict[Place, Head | None]
    ) -> int | None:
        """The id of the namespace that a record is in, which is found with it unless the record is one itself."""
        parent = namespace_place(namespace)
        found = self._namespaces.get(parent)
        if found is None:
            found = self._namespaces[parent] = self._child(ROOT_ID, _NAMESPACE, namespace)
        if kind is not _NAMESPACE:
            ids[parent], heads[parent] = found
        return found[0]

    def _child(self, parent_id: int, kind: Kind, key: str) -> tuple[int | None, Head | None]:
        row = self._execute(_SQL.child, (parent_id, int(kind), key)).fetchone()
        return _NOTHING if row is None else (row[0], Head(row[1], b"", row[2]))

    def _answer(self, query: Query) -> list[Any]:
        if self._counted and any(isinstance(read, CountRead) for read in query):
            self._add_counts()
        return self._reader.answer(query)

    def _add_counts(self) -> None:
        for (parent_id, kind), n in self._counted.items():
            self._execute(_SQL.add_count, (parent_id, int(kind), n))
        self._counted.clear()

    def _count(self, parent_id: int, kind: Kind, n: int) -> None:
        if kind in COUNTED:
            self._counted[parent_id, kind] = self._counted.get((parent_id, kind), 0) + n

    def _write(
        self,
        write: Write,
        ids: dict[Place, int | None],
        replaced: list[tuple[int | None, bytes, bytes, int]],
    ) -> None:
        """Carry out a write, but for a head that replaces one: those are gathered in ``replaced``, to be one call.

        That may come last, as nothing else needs a head, and ids of deleted records are not used again.
        """
        place = write.place
        record_id = ids[place]
        if place.kind is _NAMESPACE:
            self._namespaces.pop(place, None)
        if isinstance(write, PutHead):
            meta, value, expires = write.head
            if record_id is not None:
                replaced.append((expires, meta, value, record_id))
            else:
                parent_id = _parent_id(place, ids)
                row = (parent_id, int(place.kind), place.key, expires, meta, value)
                ids[place] = self.connection.execute(_SQL.insert_record, row).lastrowid
                self._count(parent_id, place.kind, 1)
        elif isinstance(write, PutRow):
            if record_id is None:
                raise AssertionError("a row was put into a record that does not exist")
            sort, value, by = write.row
            self._execute(_SQL.put_row, (record_id, write.lane, sort, by, value))
        elif record_id is None:
            return
        elif isinstance(write, DeleteRow):
            self._execute(_SQL.delete_row, (record_id, write.lane, write.sort))
        elif isinstance(write, DeleteRows):
            sql = _SQL.delete_rows(low=write.low is not None, high=write.high is not None)
            bounds = [bound for bound in (write.low, write.high) if bound is not None]
            self._execute(sql, (record_id, write.lane, *bounds))
        elif isinstance(write, DeleteRecord):
            self._count(_parent_id(place, ids), place.kind, -1)
            self._execute(_SQL.delete_record, (record_id,))
            self._execute(_SQL.trash_record, (record_id, record_id, record_id))
            if place.kind is Kind.NAMESPACE:
                self._add_counts()
                self._execute(_SQL.delete_counts, (record_id,))
            ids[place] = None

    def _erase(self, record_id: int, rows_max: int) -> int:
        """Erase at most ``rows_max`` rows or children of a deleted record; returns how many, counting itself."""
        rows = _within_bytes(self._execute(_SQL.some_rows, (record_id, rows_max)).fetchall())
        for lane, sort_key, _ in rows:
            self._execute(_SQL.delete_row, (record_id, lane, sort_key))
        if rows:
            return len(rows)
        children = _within_bytes(self._execute(_SQL.some_children, (record_id, rows_max)).fetchall())
        for child_id, _ in children:
            self._execute(_SQL.delete_record, (child_id,))
            self._execute(_SQL.trash_record, (child_id, child_id, child_id))
        if not children:
            self._execute(_SQL.empty_trash, (record_id,))
        return len(children) + 1


_NOTHING: Final = (None, None)
# To look a member up in its class takes longer than to find a row.
_NAMESPACE: Final = Kind.NAMESPACE


def _parent_id(place: Place, ids: dict[Place, int | None]) -> int:
    if place.kind is Kind.NAMESPACE:
        return ROOT_ID
    parent_id = ids[namespace_place(place.namespace)]
    if parent_id is None:
        raise AssertionError("a record was put into a namespace that does not exist")
    return parent_id


def _within_bytes(rows: list[Any]) -> list[Any]:
    """As many of the first rows, at least one, as together hold few enough bytes; each row ends with its size."""
    size = 0
    for position, row in enumerate(rows):
        size += row[-1]
        if size > _PURGE_BYTES_MAX:
            return rows[: position + 1]
    return rows


# --- failing -----------------------------------------------------------------------------------------------

_FULL: Final = ("storage-full", "the disk that holds {file} is full: free some space and try again")
# By primary code, but for one that has a meaning of its own: there is no room for the index of the log.
_FAILURES: Final[dict[int, tuple[str, str]]] = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
    sqlite3.SQLITE_CORRUPT: ("backend-corrupt", "{file} is damaged: stop the service and restore a backup"),
    sqlite3.SQLITE_NOTADB: ("backend-corrupt", "{file} is not a SQLite database: restore a backup or name another"),
    sqlite3.SQLITE_READONLY: ("backend-unavailable", "{file} or its folder is read-only: make both writable"),
    sqlite3.SQLITE_PERM: ("backend-unavailable", "{file} may not be opened: give the service's user access to it"),
    sqlite3.SQLITE_CANTOPEN: (
        "backend-unavailable",
        "{file} cannot be opened: it has to be a file, in a folder that the service's user may write to",
    ),
    sqlite3.SQLITE_BUSY: ("backend-unavailable", "another process keeps {file} locked: try again"),
    sqlite3.SQLITE_LOCKED: ("backend-unavailable", "another process keeps {file} locked: try again"),
    sqlite3.SQLITE_IOERR: ("backend-unavailable", "{file} cannot be read or written: check the disk"),
}


_CHANGED: Final = (
    "the tables in the database file are not those that were opened, as another program or a newer rstored changed "
    "them: restore the file, or restart the service to use what is there now"
)


def _translated(error: sqlite3.Error, file: str = "the database file") -> Exception:
    """The problem that a driver's error means; the error itself if it can only be a mistake in this program."""
    extended = getattr(error, "sqlite_errorcode", 0)
    if extended == sqlite3.SQLITE_ERROR and str(error).startswith(("no such ", "table ")):
        return Problem("backend-unavailable", _CHANGED)
    code, detail = _FAILURES.get(extended) or _FAILURES.get(extended & 0xFF) or (None, "")
    return error if code is None else Problem(code, detail.format(file=file))
