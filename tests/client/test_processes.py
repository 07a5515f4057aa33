"""A store that is open when its process forks, or that is used under several event loops: each sees its own answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.client import forking

from rstore import AsyncStore, StoreError


@pytest.mark.parametrize("program", forking.PROGRAMS)
def test_everybody_gets_the_values_that_they_asked_for(program, service_url, namespace):
    command = [sys.executable, forking.__file__, program, service_url, namespace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_an_event_loop_that_ends_leaves_no_connection_open(service_url, namespace):
    store = AsyncStore(service_url, namespace, frozen=False)
    asyncio.run(store.open())

    async def used() -> None:
        assert await asyncio.gather(*[store.get("k", 0) for _ in range(5)]) == [0] * 5
        assert len(sockets()) > before

    before = len(sockets())
    for _ in range(3):
        asyncio.run(used())
        assert len(sockets()) == before
    asyncio.run(store.close())


def sockets() -> list[str]:
    """The sockets that this process has open."""
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [file for file in files if file.startswith("socket:")]


def test_a_transport_that_was_given_stays_under_its_event_loop(service_url, namespace):
    transport = httpx2.AsyncHTTPTransport()
    store = AsyncStore(service_url, namespace, frozen=False, transport=transport)

    async def used() -> None:
        await store.open()
        assert await store.get("k", 0) == 0
        await transport.aclose()

    asyncio.run(used())
    with pytest.raises(StoreError, match="transport"):
        asyncio.run(store.get("k"))
    # Whoever closes the store and opens it again says that the transport may be used there.
    asyncio.run(store.close())
    asyncio.run(used())


def test_a_closed_store_says_so_under_every_event_loop(service_url, namespace):
    store = AsyncStore(service_url, namespace, frozen=False)
    asyncio.run(store.open())
    asyncio.run(store.close())
    with pytest.raises(StoreError, match="not open"):
        asyncio.run(store.get("k"))


def test_without_an_event_loop_of_asyncio_it_is_a_store_error():
    store = AsyncStore("http://127.0.0.1:1", "n")
    for call in (store.open(), store.get("k"), store.close()):
        with pytest.raises(StoreError, match="asyncio"):
            call.send(None)


def test_a_child_that_closes_the_store_leaves_the_parents_connection_alone(scripted, json_reply, reply):
    info = b'{"namespace": "n", "sealed_only": false, "kv": 0, "ts": 0, "es": 0}'
    server = scripted(lambda request: json_reply(info))
    code = (
        "import os, sys\n"
        "from rstore import Store\n"
        "store = Store(sys.argv[1], 'n').open()\n"
        "if os.fork() == 0:\n"
        "    store.close()\n"
        "    sys.exit()\n"
        "assert os.wait()[1] == 0\n"
        "assert store.count() == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(server.received) == 2
    assert server.connections == 1
