"""The app owns the backend and the engine for as long as it runs."""

from __future__ import annotations

import httpx2
import pytest

from rstored.app import create_app, running_app
from rstored.problems import Problem
from rstored.settings import Settings

pytestmark = pytest.mark.anyio


async def test_it_opens_and_closes_what_it_owns(tmp_path):
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}")
    async with running_app(settings) as app:
        state = app.state
        await state.backend.ping()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            assert (await http.put("/kv/k", json=1)).status_code == 201
    with pytest.raises(RuntimeError, match="not running"):
        _ = app.state
    with pytest.raises(Problem):
        await state.engine.kv.delete("default", "k")
    with pytest.raises(Problem):
        await state.backend.ping()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


async def test_what_was_written_is_there_at_the_next_start(tmp_path):
    app = create_app(Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}"))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
        async with app.running():
            assert (await http.put("/kv/k", json=1)).status_code == 201
        async with app.running():
            assert (await http.get("/kv/k")).json() == 1


async def test_what_cannot_be_opened_is_a_problem(tmp_path):
    for dsn in (f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}", "gopher://x", "nonsense"):
        with pytest.raises(Problem) as caught:
            async with running_app(Settings(dsn=dsn)):
                pass
        assert caught.value.code == "backend-unavailable"
        assert "\n" not in caught.value.detail
