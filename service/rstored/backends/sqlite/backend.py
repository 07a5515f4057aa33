"""The SQLite backend: one file, read on the event loop, written by one thread.

The file is in WAL mode, so a read sees the last commit and waits for nobody. Reading a page in memory takes less time
than a hop to a thread. All writes of a batch are one transaction (group commit). Several processes may use one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, Final

from rstored.backends.abc import Backend, Capabilities, Query, SchemaVersions, UnfitStorage, Update
from rstored.backends.migrations import SCHEMA_VERSION
from rstored.backends.sqlite.connections import check_schema, connect, connect_both, schema_version
from rstored.backends.sqlite.dsn import database_path
from rstored.backends.sqlite.failures import translated
from rstored.backends.sqlite.files import Files, check_path
from rstored.backends.sqlite.reader import Reader
from rstored.backends.sqlite.thread import WriterThread
from rstored.backends.sqlite.writer import Writer
from rstored.problems import Problem

_SWITCH_SECONDS: Final = 5e-6


class SQLiteBackend(Backend):
    """A store in one SQLite file."""

    capabilities = Capabilities(local_reads=True)

    def __init__(self, files: Files, thread: WriterThread, writer: Writer, reader: Reader) -> None:
        self._files = files
        self._thread = thread
        self._writer = writer
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._closed = False

    @classmethod
    async def open(cls, dsn: str) -> SQLiteBackend:
        """Open or create the file that ``dsn`` names (see :func:`database_path`)."""
        path = database_path(dsn)
        check_path(path)
        # The writer thread needs the interpreter's lock again after every statement. A busy event loop releases it
        # often, but only for an instant. With Python's default interval of 5 ms, the thread would seldom get it. Under
        # load, a write then took seconds instead of milliseconds.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        thread = WriterThread()
        try:
            files, writing, reading = await thread.run(connect_both, path)
        except BaseException as error:
            thread.end()
            if isinstance(error, sqlite3.Error):
                raise translated(error, f"the database file {str(path)!r}") from error
            raise
        return cls(files, thread, Writer(writing, files), Reader(reading))

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """The versions, read from the file. A missing or empty file has version 0."""
        path = database_path(dsn)
        check_path(path)
        if not path.exists() or path.stat().st_size == 0:
            return SchemaVersions(0, SCHEMA_VERSION)
        try:
            with contextlib.closing(connect(path)) as connection:
                connection.execute("PRAGMA query_only = ON")
                return SchemaVersions(schema_version(connection), SCHEMA_VERSION)
        except sqlite3.Error as error:
            raise translated(error, f"the database file {str(path)!r}") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._thread.run(self._writer.connection.close)
        finally:
            self._reader.connection.close()
            self._thread.end()

    async def ping(self) -> None:
        self._check_open()
        self._files.check()
        self._files.check_mode()
        try:
            check_schema(self._reader.connection)
        except sqlite3.Error as error:
            failure = translated(error)
            if isinstance(failure, Problem) and failure.code == "backend-corrupt":
                # Writes to such a file may be lost when it is opened again.
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
        if len(queries) > 1:
            # Many heads are found together. If one read fails, each query is asked alone and has its own answer.
            found = self._answer(tuple(itertools.chain.from_iterable(queries)))
            if not isinstance(found, Problem):
                answers = iter(found)
                return [list(itertools.islice(answers, len(query))) for query in queries]
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> list[Any] | Problem:
        reader = self._reader
        try:
            if not reader.connection.in_transaction:
                # Beginning and ending a transaction is half of the cost of a read, so all reads of one round of the
                # event loop share one. It sees at least what was committed when the round began. Whoever reads in
                # this round sent the request before it, or calls renew(). So no reader can know of a later write.
                reader.begin()
                self._loop.call_soon(self.renew)
            return reader.answer(query)
        except Problem as problem:
            return problem
        except sqlite3.Error as error:
            self._check_open()
            failure = translated(error)
            if not isinstance(failure, Problem):
                raise
            return failure

    def renew(self) -> None:
        if not self._closed:
            self._reader.end()

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        return await self._thread.run(self._writer.update, updates)

    async def purge(self) -> bool:
        self._check_open()
        try:
            return await self._thread.run(self._writer.purge)
        except sqlite3.Error as error:
            raise translated(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("backend-unavailable", "the database is closed")
