"""A connection to PostgreSQL over which libpq itself sends many statements in one round trip.

psycopg makes the connection, keeps it in its pool and defines the errors. Its cursors are not used, because their work
in Python for each statement costs more than all the rest of a small write.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import AsyncRowFactory, tuple_row

from rstored.backends.postgresql.parameters import INT8_OID, Parameter, encoded

Rows: TypeAlias = list[tuple[Any, ...]]
Request: TypeAlias = tuple[str, Sequence[Parameter]]
"""A statement and its parameters."""

OPTIONS: Final[dict[str, Any]] = {"autocommit": True, "client_encoding": "utf8", "prepare_threshold": None}
"""How a :class:`Connection` is made.

Text is sent in UTF-8. psycopg must prepare nothing. After a rollback it would make the server forget all prepared
statements, including those of :meth:`Connection.exchange`.
"""

# The server infers the type of a parameter, but both sides must agree on the size of an integer.
_ANY_OID: Final = 0

_PLACEHOLDER: Final = re.compile("%[sb]")
# It gets one result after the other, and keeps none of them.
_loaders: Final = Transformer()


class Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection of psycopg, made with :data:`OPTIONS`. It prepares each statement once.

    ``store_id`` is the id of the store that it leads to, or None if there is no store.
    """

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[tuple[Any, ...]] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.store_id: bytes | None = None
        # The names of the statements that the server has prepared, by their texts.
        self._names: dict[str, bytes] = {}
        self._new_names = map(b"s%d".__mod__, itertools.count())

    async def exchange(self, requests: Sequence[Request]) -> list[Rows]:
        """Send the statements in one round trip. Returns the rows of each. After one that fails, none is carried out.

        Raises :class:`psycopg.Error`. If the exchange is broken off, the connection is closed.
        """
        pgconn = self.pgconn
        try:
            pgconn.enter_pipeline_mode()
            sent = self._send(requests)
            results = await self._results()
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()
            raise
        rows: list[Rows] = []
        failure: PGresult | None = None
        for prepared, result in zip(sent, results, strict=True):
            done = result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
            if failure is None and not done:
                failure = result
            if prepared is None:
                rows.append(_rows(result) if failure is None else [])
            elif not done:
                del self._names[prepared]
        if failure is not None:
            raise psycopg.errors.error_from_result(failure)
        return rows

    def _send(self, requests: Sequence[Request]) -> list[str | None]:
        """Send everything. For each expected answer, returns the text that is being prepared, or None for rows."""
        pgconn = self.pgconn
        sent: list[str | None] = []
        for text, parameters in requests:
            name = self._names.get(text)
            if name is None:
                name = self._names[text] = next(self._new_names)
                numbers = itertools.count(1)
                numbered = _PLACEHOLDER.sub(lambda _: f"${next(numbers)}", text)  # noqa: B023 - called at once
                types = [INT8_OID if isinstance(parameter, int) else _ANY_OID for parameter in parameters]
                pgconn.send_prepare(name, numbered.encode(), types)
                sent.append(text)
            values = [encoded(parameter) for parameter in parameters]
            pgconn.send_query_prepared(name, values, [pq.Format.BINARY] * len(values), pq.Format.BINARY)
            sent.append(None)
        pgconn.pipeline_sync()
        return sent

    async def _results(self) -> list[PGresult]:
        """All answers to the statements that were sent. Raises OperationalError if the connection breaks."""
        pgconn = self.pgconn
        results: list[PGresult] = []
        while pgconn.flush():
            # The server may have to send answers before it reads on.
            await self._ready(writing=True)
            pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                await self._ready()
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                # None ends the answer to a statement. A lost connection answers None for ever.
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection is lost")
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            else:
                results.append(result)

    async def _ready(self, *, writing: bool = False) -> None:
        """Wait until the server has sent something. If ``writing``, also return when it can take more."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        descriptor = self.pgconn.socket

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(descriptor, wake)
        if writing:
            loop.add_writer(descriptor, wake)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)
            if writing:
                loop.remove_writer(descriptor)


def _rows(result: PGresult) -> Rows:
    count = result.ntuples
    if not count:
        return []
    _loaders.set_pgresult(result)
    return _loaders.load_rows(0, count, tuple)
