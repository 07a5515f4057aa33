"""How the PostgreSQL backend carries out updates: a batch is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from rstored.backends.abc import (
    CountRead,
    DeleteRow,
    DeleteRows,
    Head,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.executor import Executor
from rstored.backends.postgresql.changes import Changes, count_requests
from rstored.backends.postgresql.connection import Connection, Request
from rstored.backends.postgresql.failures import LOST, Lost
from rstored.backends.postgresql.parameters import texts
from rstored.backends.postgresql.reader import Asked
from rstored.backends.postgresql.statements import COMMIT, FOUND, OWNER, place_columns
from rstored.backends.schema import ROOT_ID
from rstored.problems import Problem

_LOCK_ALONE: Final[Request] = ("SET LOCAL lock_timeout = '100ms'", ())
_IDS_RESERVED: Final = 1_000

# Both lock in the order of their parameters, which is the same for all processes.
_LOCK_NAMESPACES: Final = f"""
    SELECT owner.key, owner.id, owner.meta, owner.expires_ms
    FROM unnest(%s::text[]) AS place (namespace)
    CROSS JOIN LATERAL ({OWNER} FOR KEY SHARE) AS owner
"""  # noqa: S608 - made of constants
_LOCK_HEADS: Final = f"""
    SELECT place.position, found.id, found.meta, found.expires_ms
    FROM unnest(%s::text[], %s::bigint[], %s::text[]) WITH ORDINALITY AS place (namespace, kind, key, position)
    CROSS JOIN LATERAL ({OWNER} LIMIT 1) AS owner
    CROSS JOIN LATERAL ({FOUND} FOR UPDATE) AS found
"""  # noqa: S608 - made of constants
_BEGIN: Final[Request] = ("BEGIN", ())
_ROLLBACK: Final[Request] = ("ROLLBACK", ())
_RESERVE_IDS: Final = "SELECT nextval(pg_get_serial_sequence('record', 'id')) FROM generate_series(1, %s)"
# Fails if the store has another id.
_CHECK_STORE_ID: Final = f"SELECT 1 / count(*) FROM record WHERE id = {ROOT_ID} AND value = %s"  # noqa: S608

# The SQLSTATE of a warning, which accompanies an answer without error.
_WARNING: Final = "01000"


class Transaction(Executor):
    """One batch of updates on one connection.

    ``committing`` is set when COMMIT is sent. If the connection then breaks, nobody knows whether it took place.
    """

    def __init__(
        self, connection: Connection, store_id: bytes, spare_ids: list[int], updates: Sequence[Update[Any]]
    ) -> None:
        super().__init__(updates, [None] * len(updates))
        self.committing = False
        self._connection = connection
        self._store_id = store_id
        # Whether the transaction makes namespaces. All its records are in namespaces that it makes, or that it found in
        # the store that was opened. So the id of the store must be checked only if it makes some.
        self._founding = False
        self._spare_ids = spare_ids
        self._ids: dict[Place, int | None] = {}
        self._heads: dict[Place, Head | None] = {}
        self._changes = Changes()

    async def run(self, *, alone: bool) -> list[Any]:
        """Carry out the updates in order and commit. Returns their answers and the exceptions of their plans.

        An update that runs ``alone`` waits only briefly for locks, because it has waited with others before.
        """
        notices: list[str | None] = []

        def note(notice: psycopg.errors.Diagnostic) -> None:
            notices.append(notice.sqlstate)

        self._connection.add_notice_handler(note)
        try:
            await self._lock(sorted({place for update in self.updates for place in update.places}), alone=alone)
            await self.execute(range(len(self.updates)))
            checks: list[Request] = [(_CHECK_STORE_ID, (self._store_id,))] if self._founding else []
            requests = [*self._changes.requests(), *checks, *count_requests(self._changes.counts), COMMIT]
            self.committing = True
            await self._connection.exchange(requests)
        except BaseException:
            if not self._connection.closed:
                await self._connection.exchange([_ROLLBACK])
            raise
        finally:
            self._connection.remove_notice_handler(note)
        if _WARNING in notices:
            # Somebody cancelled the wait for the synchronous replica. The server reports a success all the same.
            raise Problem("backend-unavailable", "PostgreSQL has committed, but maybe not on its replica: try again")
        return self.results

    async def _lock(self, places: list[Place], *, alone: bool) -> None:
        """Begin, lock the heads of the places, keep their namespaces in place, and read both, in one round trip."""
        parents = sorted({place.namespace for place in places if place.kind is not Kind.NAMESPACE})
        requests: list[Request] = [(_LOCK_NAMESPACES, (texts(parents),)), (_LOCK_HEADS, place_columns(places))]
        beginning = [_BEGIN, _LOCK_ALONE] if alone else [_BEGIN]
        *_, namespaces, records = await self._connection.exchange([*beginning, *requests])
        self._ids = dict.fromkeys((*places, *map(namespace_place, parents)))
        self._heads = dict.fromkeys(self._ids)
        found = [(namespace_place(name), *row) for name, *row in namespaces]
        found += [(places[position - 1], *row) for position, *row in records]
        for place, record_id, meta, expires_ms in found:
            self._ids[place], self._heads[place] = record_id, Head(meta, b"", expires_ms)

    def heads(self, update: Update[Any]) -> dict[Place, Head | None]:
        return self._heads

    async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
        await self._reserve_ids(sum(type(write) is PutHead for _, writes in ended for write in writes))
        for _, writes in ended:
            for write in writes:
                self._write(write)

    async def ask(self, asked: Sequence[tuple[int, Query]]) -> list[list[Any]]:
        queries = [query for _, query in asked]
        requests = self._changes.requests()
        counts = self._changes.counts
        if any(isinstance(read, CountRead) for query in queries for read in query):
            requests += count_requests(counts)
            counts = {}
        self._changes = Changes(counts)
        questions = Asked(queries)
        rows = await self._connection.exchange([*requests, *questions.requests])
        return questions.answers(rows[len(requests) :])

    async def _reserve_ids(self, n: int) -> None:
        if len(self._spare_ids) < n:
            (rows,) = await self._connection.exchange([(_RESERVE_IDS, (n + _IDS_RESERVED,))])
            self._spare_ids += [record_id for (record_id,) in rows]

    def _write(self, write: Write) -> None:
        place = write.place
        record_id = self._ids[place]
        if isinstance(write, PutHead):
            new = record_id is None
            if record_id is None:
                self._founding |= place.kind is Kind.NAMESPACE
                record_id = self._ids[place] = self._spare_ids.pop()
            self._changes.put(record_id, self._parent_id(place), place, write.head, new=new)
            self._heads[place] = write.head._replace(value=b"")
        elif isinstance(write, PutRow):
            if record_id is None:
                raise AssertionError("a row was put into a record that does not exist")
            self._changes.rows[record_id, write.lane, write.row.sort] = write.row
        elif record_id is None:
            return
        elif isinstance(write, DeleteRow):
            self._changes.rows[record_id, write.lane, write.sort] = None
        elif isinstance(write, DeleteRows):
            self._changes.delete_rows(record_id, write)
        else:
            self._changes.delete(record_id, self._parent_id(place), place)
            gone = [place]
            if place.kind is Kind.NAMESPACE:
                gone += [inner for inner in self._ids if inner.namespace == place.key]
            for inner in gone:
                self._ids[inner] = self._heads[inner] = None

    def _parent_id(self, place: Place) -> int:
        if place.kind is Kind.NAMESPACE:
            return ROOT_ID
        parent_id = self._ids[namespace_place(place.namespace)]
        if parent_id is None:
            if not place.namespace:
                # The root record exists as long as the store does.
                raise Lost("backend-unavailable", LOST)
            raise AssertionError("a record was put into a namespace that does not exist")
        return parent_id
