"""What every backend must do, by the contract in ``rstored/backends/abc.py``. rstored.testing has the cases."""

from __future__ import annotations

import pytest

from rstored.backends.abc import (
    Backend,
    Commit,
    DeleteRecord,
    Head,
    Kind,
    Place,
    PutHead,
    PutRow,
    Row,
    Update,
    namespace_place,
)
from rstored.testing import BackendContract


class TestContract(BackendContract):
    """Over each backend of this project."""


@pytest.mark.anyio
async def test_purge_goes_in_steps(backend: Backend) -> None:
    ns, series = namespace_place("ns"), Place("ns", Kind.TS, "series")

    async def commit(*writes):
        def plan(heads):
            return Commit(writes, None)
            yield

        assert await backend.update([Update(tuple({write.place: None for write in writes}), plan)]) == [None]

    await commit(PutHead(ns, Head(b"")))
    await commit(PutHead(series, Head(b"")), *(PutRow(series, 0, Row(b"%05d" % n, b"")) for n in range(2500)))
    await commit(*(PutHead(Place("ns", Kind.KV, f"{{k}}{n:05}"), Head(b"")) for n in range(2500)))
    await commit(DeleteRecord(ns))
    steps = 0
    while await backend.purge():
        steps += 1
    assert steps > 1
    assert not await backend.purge()
