"""Cases of a backend's life: opening, pinging and closing."""

from __future__ import annotations

import pytest

from rstored.backends.abc import (
    Backend,
    Head,
    HeadRead,
    PutHead,
    Row,
    RowScan,
    Slice,
)
from rstored.problems import Problem
from rstored.testing.tools import NS, SERIES, commit, fill, kv, read, writing


class LifeCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_the_schema_has_a_version_as_soon_as_it_is_made(self, backend_type: type[Backend], dsn: str) -> None:
        present, known = await backend_type.schema_versions(dsn)
        assert present == 0
        await (await backend_type.open(dsn)).close()
        assert await backend_type.schema_versions(dsn) == (known, known)

    async def test_what_was_written_is_there_after_opening_again(
        self, backend: Backend, backend_type: type[Backend], dsn: str
    ) -> None:
        await fill(backend, Row(b"1", b"x"))
        await backend.close()
        again = await backend_type.open(dsn)
        try:
            assert await read(again, HeadRead(SERIES), RowScan(SERIES, 0)) == [
                Head(b"m"),
                Slice([Row(b"1", b"x")], False),
            ]
        finally:
            await again.close()

    async def test_two_open_backends_see_each_other(
        self, backend: Backend, backend_type: type[Backend], dsn: str
    ) -> None:
        other = await backend_type.open(dsn)
        try:
            await commit(other, PutHead(NS, Head(b"")), PutHead(kv("k"), Head(b"one")))
            assert await read(backend, HeadRead(kv("k"))) == [Head(b"one")]
            await commit(backend, PutHead(kv("k"), Head(b"two")))
            assert await read(other, HeadRead(kv("k"))) == [Head(b"two")]
        finally:
            await other.close()

    async def test_it_answers_pings_and_describes_itself_until_it_is_closed(self, backend: Backend) -> None:
        await backend.ping()
        assert {"name", "version", "durability"} <= backend.describe().keys()
        await backend.close()
        await backend.close()
        with pytest.raises(Problem, match="closed"):
            await backend.ping()
        with pytest.raises(Problem, match="closed"):
            await backend.read([(HeadRead(NS),)])
        with pytest.raises(Problem, match="closed"):
            await backend.update([writing(PutHead(NS, Head(b"")))])
