"""Tokens through the SDK and the command line, and that neither ever shows one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable

import httpx2
import pytest
import rich.pretty
from tests.client.conftest import Received, ScriptedServer

import rstore
from rstore import AsyncStore, Store
from rstore.core.durations import InvalidDuration, parse_duration
from rstore.store.bare import open_unasked

ADMIN = secrets.token_hex(16)


@pytest.fixture(scope="module")
def url(serve_module, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A closed service."""
    folder = tmp_path_factory.mktemp("closed")
    return str(serve_module(f"sqlite:///{folder / 'store.db'}", env={"RSTORED_ADMIN_TOKEN": ADMIN}).url)


def test_blocking(url, namespace):
    with Store(url, namespace, frozen=False, token=ADMIN) as store:
        made = store.create_token(namespace, "read", label="x", lifetime=3600)
        assert (made.namespaces, made.access, made.label) == ([namespace], "read", "x")
        assert made.expires_ms == made.created_ms + 3_600_000
        assert made.id in [token.id for token in store.tokens()]
        store["k"] = 1
        with Store(url, namespace, token=made.text) as reader:
            assert reader["k"] == 1
        metrics = store.create_token("*", "metrics")
        assert (metrics.namespaces, metrics.access) == (["*"], "metrics")
        with pytest.raises(rstore.StoreAccessError), Store(url, namespace, token=metrics.text) as nobody:
            nobody.get("k")
        with pytest.raises(rstore.StoreRequestError):
            store.create_token(namespace, "metrics")
        with pytest.raises(rstore.StoreAccessError), Store(url, namespace, token=made.text, frozen=False):
            pass
        renewed = store.rotate_token(made.id)
        assert renewed.id == made.id
        with pytest.raises(rstore.StoreAuthenticationError), Store(url, namespace, token=renewed.text + "x"):
            pass
        store.revoke_token(made.id)
        with pytest.raises(rstore.StoreNotFoundError):
            store.revoke_token(made.id)
        with pytest.raises(rstore.StoreNotFoundError) as caught:
            store.rotate_token(made.id)
        assert caught.value.code == "token-not-found"
        for wrong in ([], ["a/b"], "~"):
            with pytest.raises(rstore.StoreRequestError):
                store.create_token(wrong, "read")
    with Store(url, namespace, token=ADMIN) as frozen:
        assert isinstance(frozen.tokens(), list)
        for use in (
            lambda: frozen.create_token("x", "read"),
            lambda: frozen.rotate_token(made.id),
            lambda: frozen.revoke_token(made.id),
        ):
            with pytest.raises(rstore.FrozenStoreError):
                use()


def test_awaited(url, namespace):
    async def use() -> None:
        async with AsyncStore(url, namespace, frozen=False, token=ADMIN) as store:
            made = await store.create_token([namespace, "b*"], "admin")
            assert made.id in [token.id for token in await store.tokens()]
            assert (await store.rotate_token(made.id, grace=60)).text != made.text
            await store.revoke_token(made.id)
            assert made.id not in [token.id for token in await store.tokens()]

    asyncio.run(use())


@pytest.mark.parametrize("make", [lambda s: s.create_token("x", "read"), lambda s: s.rotate_token("0" * 16)])
def test_what_makes_a_text_is_sent_once(scripted, make):
    """A lost answer is not asked for again: there would be two tokens, or the text in use would be none."""
    server: ScriptedServer = scripted(lambda request: None)
    store = Store(server.url, frozen=False, retries=4, timeout=5)
    open_unasked(store)
    with pytest.raises(rstore.StoreNotAvailableError):
        make(store)
    assert len(server.received) == 1
    with pytest.raises(rstore.StoreNotAvailableError):
        store.revoke_token("0" * 16)
    assert len(server.received) > 2
    store.close()


def test_a_revocation_whose_answer_was_lost_is_not_a_failure(url, namespace, scripted):
    """It has happened by the time that it is sent again."""
    statuses: list[int] = []

    def relay(request: Received) -> bytes | None:
        passed = httpx2.request(request.method, url + request.target, headers={**request.headers, "host": url[7:]})
        statuses.append(passed.status_code)
        return b"HTTP/1.1 %d Whatever\r\n\r\n" % passed.status_code if len(statuses) == 3 else None

    server: ScriptedServer = scripted(relay)
    with Store(url, namespace, frozen=False, token=ADMIN) as store:
        made = store.create_token(namespace, "read")
        behind = Store(server.url, namespace, frozen=False, token=ADMIN, retries=4)
        open_unasked(behind)
        behind.revoke_token(made.id)
        behind.close()
        assert statuses == [204] * 3
        assert made.id not in [token.id for token in store.tokens()]


# --- never shown ---------------------------------------------------------------------------------------------


def everything_told(use: Callable[[], object]) -> str:
    """What an error that ``use`` ends in tells, its causes and the local variables of all their frames too.

    But for the frames of this file, which hold the token as a caller's may.
    """
    with pytest.raises(rstore.StoreError) as caught:
        use()
    told: list[str] = []
    errors: list[BaseException | None] = [caught.value]
    while errors:
        error = errors.pop()
        if error is None:
            continue
        told += [repr(error), str(error), repr(vars(error))]
        errors += [error.__cause__, error.__context__]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                told += map(shown, frame.f_locals.values())
    assert len(told) > 10
    return "\n".join(told)


def shown(value: object) -> str:
    with contextlib.suppress(AttributeError):  # An object of which not all is made yet.
        return repr(value)
    return ""


def test_no_error_tells_the_token(url, closed_port, scripted):
    token = secrets.token_hex(16)
    cut: ScriptedServer = scripted(lambda request: None)
    wrong: ScriptedServer = scripted(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxxx")

    def opened(address: str) -> None:
        with Store(address, "n", token=token, retries=1, timeout=2) as store:
            store.get("k")

    async def awaited(address: str) -> None:
        async with AsyncStore(address, "n", token=token, retries=1, timeout=2) as store:
            await store.get("k")

    addresses = (url, f"http://127.0.0.1:{closed_port}", cut.url, wrong.url, "sqlite:///x", "http://user@x")
    for address in addresses:
        assert token not in everything_told(lambda: opened(address)), address  # noqa: B023
        assert token not in everything_told(lambda: asyncio.run(awaited(address)))  # noqa: B023
    for options in ({"namespace": "a b"}, {"key": "short"}, {"timeout": -1}, {"sealed_only": 5}):
        assert token not in everything_told(lambda: Store(url, token=token, **options))  # noqa: B023
    assert token not in repr(Store(url, token=token))
    for malformed in (token + " \u20ac", token.encode(), [token]):
        assert token not in everything_told(lambda: Store(url, token=malformed))  # type: ignore[arg-type]  # noqa: B023


def test_no_error_tells_the_environment(monkeypatch):
    token, key = secrets.token_hex(16), rstore.generate_key()
    monkeypatch.setenv("RSTORE_TOKEN", token)
    monkeypatch.setenv("RSTORE_KEY", key)
    for options in ({"namespace": "a b"}, {"key": "short"}, {"timeout": -1}, {"dsn": "sqlite:///x"}):
        told = everything_told(lambda: Store(**options))  # noqa: B023
        assert token not in told
        assert key not in told


def test_a_store_with_a_token_is_not_pickled(url):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="token"):
            pickle.dumps(Store(url, token=ADMIN), protocol)


def test_nothing_of_the_environment_gets_or_gives_credentials(scripted, tmp_path, monkeypatch):
    """Neither does a proxy see the token, nor does a password of `.netrc` go to the service."""
    (tmp_path / ".netrc").write_text("default login somebody password netrc-secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    proxy: ScriptedServer = scripted(lambda request: None)
    service: ScriptedServer = scripted(
        lambda request: b"HTTP/1.1 302 Found\r\nLocation: %b/\r\nContent-Length: 0\r\n\r\n" % proxy.url.encode()
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv(name.lower(), proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def awaited(token: str | None) -> None:
        async with AsyncStore(service.url, "n", token=token, retries=0):
            pass

    for token in (None, ADMIN):
        with pytest.raises(rstore.StoreProtocolError):
            Store(service.url, "n", token=token, retries=0).open()
        with pytest.raises(rstore.StoreProtocolError):
            asyncio.run(awaited(token))
    sent = [request.headers.get("authorization") for request in service.received]
    assert sent == [None, None, f"Bearer {ADMIN}", f"Bearer {ADMIN}"]
    assert proxy.connections == 0


def test_the_http_library_logs_no_token(url, namespace, caplog):
    caplog.set_level("DEBUG")
    with Store(url, namespace, frozen=False, token=ADMIN) as store:
        made = store.create_token(namespace, "read")
        store.set("k", 1)
    with pytest.raises(rstore.StoreError):
        Store(url, namespace, token=made.text + "x").open()
    told = caplog.text + str([vars(record) for record in caplog.records])
    assert "httpcore2" in told
    assert ADMIN not in told
    assert made.text.split("_", 2)[2] not in told


def test_a_new_token_shows_no_text(url, namespace):
    with Store(url, namespace, frozen=False, token=ADMIN) as store:
        made = store.create_token(namespace, "read")
        told = everything_told(lambda: store.create_token(namespace, made.text))  # type: ignore[arg-type]
    secret = made.text.split("_", 2)[2]
    assert secret not in f"{made!r} {made}"
    assert made.id in rich.pretty.pretty_repr(made)
    assert secret not in rich.pretty.pretty_repr([made])
    assert ADMIN not in told


# --- the command line ----------------------------------------------------------------------------------------


def test_revoking_what_is_not_a_token_fails(url, namespace):
    """Who mistypes the id of a token that leaked, or takes the text for it, must not believe that it is gone."""

    def revoke(token_id: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rstore", "--url", url, "token", "revoke", token_id]
        env = {**os.environ, "RSTORE_TOKEN": ADMIN}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    with Store(url, namespace, frozen=False, token=ADMIN) as store:
        made = store.create_token(namespace, "read")
        for wrong in (made.text, "0" * 16, made.id.upper() + "x"):
            refused = revoke(wrong)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.startswith("rstore: there is no token with this id: ")
        assert made.id in [token.id for token in store.tokens()]
        assert revoke(made.id).returncode == 0
        assert made.id not in [token.id for token in store.tokens()]
    assert revoke(made.id).returncode == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("45", 45), ("45s", 45), ("30m", 1800), ("12h", 43_200), ("90d", 7_776_000), ("0", 0)]
)
def test_spans_of_time(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1.5h", "1 d", "1y", "1d\n", "٣d", "1d1h"])
def test_what_is_not_a_span_of_time(text):
    with pytest.raises(InvalidDuration):
        parse_duration(text)
