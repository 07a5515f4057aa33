"""The app owns the backend and the engine for as long as it runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import httpx2
import pytest
from tests.waiting import SECONDS_MAX

import rstored.app
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


def test_any_asgi_server_serves_the_app_with_the_settings_of_the_environment(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A key with a slash in it tells whether the path arrives as it was sent.
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/kv/a%2Fb"
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "rstored.app:app", "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**os.environ, "RSTORED_DSN": f"sqlite:///{tmp_path / 'store.db'}"},
        )
        try:
            # The socket listens already, so this waits until the app is open.
            assert httpx2.put(url, json=1, timeout=SECONDS_MAX).status_code == 201
            answer = httpx2.get(url)
            assert (answer.json(), answer.headers["server"]) == (1, "uvicorn")
        finally:
            server.terminate()
            server.wait(SECONDS_MAX)
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_a_server_does_not_start_with_a_setting_that_does_not_exist(tmp_path):
    server = subprocess.run(
        [sys.executable, "-m", "uvicorn", "rstored.app:app", "--uds", str(tmp_path / "socket")],
        env={**os.environ, "RSTORED_DNS": "sqlite:///store.db"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert server.returncode != 0
    assert "RSTORED_DNS is not a setting" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_server_finds_the_app_wherever_it_looks():
    # uvicorn asks the module for the name, hypercorn looks it up among the names that the module has defined.
    assert vars(rstored.app)["app"] is rstored.app.app


async def test_a_web_socket_is_refused():
    refusals = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        refusals.append(message)

    await create_app(Settings())({"type": "websocket", "path": "/"}, receive, send)
    assert refusals == [{"type": "websocket.close"}]


async def test_what_cannot_be_opened_is_a_problem(tmp_path):
    for dsn in (f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}", "gopher://x", "nonsense"):
        with pytest.raises(Problem) as caught:
            async with running_app(Settings(dsn=dsn)):
                pass
        assert caught.value.code == "backend-unavailable"
        assert "\n" not in caught.value.detail
