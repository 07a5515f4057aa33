"""TLS with certificates made here: what the service takes, and what the SDK and the CLI believe."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import httpx2
import pytest
from tests.certificates import new_authority, tls_settings
from tests.client import forking
from tests.waiting import SECONDS_MAX, until

from rstore import AsyncStore, Store, StoreNotAvailableError, StoreRequestError

PASSWORD = "a pass phrase"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return new_authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return new_authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture(scope="module")
def server(serve_module, authority, tmp_path_factory):
    """A service with TLS that asks for no certificate."""
    dsn = f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"
    return serve_module(dsn, env=tls_settings(*authority.issue("service", "127.0.0.1", "localhost")))


@pytest.fixture(scope="module")
def strict(serve_module, authority, tmp_path_factory):
    """A service that takes only clients with a certificate; its key has a password."""
    dsn = f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"
    cert, key = authority.issue("strict", "127.0.0.1", password=PASSWORD)
    return serve_module(dsn, env=tls_settings(cert, key, key_password=PASSWORD, client_ca=authority.file))


def use(url: str, **options) -> None:
    with Store(url, "tls", frozen=False, retries=0, **options) as store:
        store["k"] = [1, "é"]
        assert store["k"] == [1, "é"]
        assert list(store) == ["k"]


async def use_async(url: str, **options) -> None:
    async with AsyncStore(url, "tls", frozen=False, retries=0, **options) as store:
        await store.set("k", 2)
        assert await store.get("k") == 2


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSTORE")}
    command = [sys.executable, "-m", "rstore", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=60, check=False)


# --- the service is who it says ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_verified_service_is_used(server, authority):
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=authority.file)
    for verify in (authority.file, Path(authority.file), context, False):
        use(server.url, verify=verify)
        await use_async(server.url, verify=verify)


@pytest.mark.anyio
async def test_an_unverified_service_is_refused(server, stranger):
    for options in ({}, {"verify": stranger.file}):
        with pytest.raises(StoreNotAvailableError, match="certificate"):
            use(server.url, **options)
        with pytest.raises(StoreNotAvailableError, match="certificate"):
            await use_async(server.url, **options)


@pytest.mark.anyio
async def test_a_certificate_for_another_host_is_refused(serve, authority, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env=tls_settings(*authority.issue("other", "store.example")))
    with pytest.raises(StoreNotAvailableError, match="certificate"):
        use(server.url, verify=authority.file)
    with pytest.raises(StoreNotAvailableError, match="certificate"):
        await use_async(server.url, verify=authority.file)


def test_the_command_line_verifies_too(server, authority, stranger):
    done = cli("--url", server.url, "--ca", authority.file, "set", "c", "1")
    assert done.returncode == 0, done.stderr
    done = cli("get", "c", RSTORE_URL=server.url, RSTORE_CA=authority.file)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    for ca in ((), ("--ca", stranger.file)):
        done = cli("--url", server.url, *ca, "get", "c")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "certificate" in done.stderr


@pytest.mark.anyio
async def test_a_wrong_scheme_gets_nothing_and_is_told_so(server, serve, authority, tmp_path):
    plain = serve(f"sqlite:///{tmp_path / 'store.db'}")
    for url, hint in (
        (server.url.replace("https://", "http://"), "its URL begins with https://"),
        (plain.url.replace("http://", "https://"), "plain http://"),
    ):
        with pytest.raises(StoreNotAvailableError, match=hint):
            use(url, verify=authority.file)
        with pytest.raises(StoreNotAvailableError, match=hint):
            await use_async(url, verify=authority.file)


def test_old_versions_of_tls_are_refused(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection)


def test_browsers_are_told_to_stay_with_tls(server, authority):
    context = ssl.create_default_context(cafile=authority.file)
    with httpx2.Client(base_url=server.url, verify=context) as http:
        for path in ("/", "/kv/absent", "/ts/none/range"):
            assert http.get(path).headers["strict-transport-security"] == "max-age=31536000"


# --- the client is who it says -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_client_certificate(strict, authority, stranger, tmp_path):
    cert, key = authority.issue("client")
    together = tmp_path / "together.pem"
    together.write_bytes(Path(cert).read_bytes() + Path(key).read_bytes())
    for given in ((cert, key), str(together), together):
        use(strict.url, verify=authority.file, cert=given)
        await use_async(strict.url, verify=authority.file, cert=given)
    expired = authority.issue("expired", days=-0.5)
    for refused in ({}, {"cert": stranger.issue("stranger-client")}, {"cert": expired}):
        with pytest.raises(StoreNotAvailableError, match="certificate"):
            use(strict.url, verify=authority.file, **refused)
        with pytest.raises(StoreNotAvailableError):
            await use_async(strict.url, verify=authority.file, **refused)
    done = cli("--url", strict.url, "--ca", authority.file, "--cert", str(together), "set", "k", "1")
    assert done.returncode == 0, done.stderr
    done = cli("get", "k", RSTORE_URL=strict.url, RSTORE_CA=authority.file, RSTORE_CERT=str(together))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    done = cli("get", "k", RSTORE_URL=strict.url, RSTORE_CA=authority.file)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_the_sdks_files(authority, stranger, tmp_path):
    cert, _ = authority.issue("someone")
    _, other_key = authority.issue("someone-else")
    locked = authority.issue("locked", password=PASSWORD)
    (tmp_path / "no.pem").write_text("no certificate")
    for options, named in (
        ({"verify": str(tmp_path / "absent.pem")}, "verify"),
        ({"verify": str(tmp_path / "no.pem")}, "verify"),
        ({"cert": str(tmp_path / "absent.pem")}, "cert"),
        ({"cert": cert}, "cert"),
        ({"cert": (cert, other_key)}, "cert"),
        ({"cert": locked}, "cert"),
    ):
        with pytest.raises(StoreRequestError, match=named):
            use("https://127.0.0.1:1", **options)


# --- files that will not do --------------------------------------------------------------------------------


def test_a_wrong_file_ends_the_start_with_one_line(authority, tmp_path):
    cert, key = authority.issue("right", "127.0.0.1")
    _, other_key = authority.issue("another", "127.0.0.1")
    locked = authority.issue("locked-service", password=PASSWORD)
    (tmp_path / "no.pem").write_text("no certificate")
    nothing = str(tmp_path / "no.pem")
    for options, said in (
        (["--tls-cert", cert, "--tls-key", str(tmp_path / "absent.key")], "--tls-key: cannot read"),
        (["--tls-cert", str(tmp_path / "absent.pem"), "--tls-key", key], "--tls-cert: cannot read"),
        (["--tls-cert", cert, "--tls-key", other_key], "the key does not belong to the certificate"),
        (["--tls-cert", cert], "not in PEM form"),
        (["--tls-cert", nothing, "--tls-key", key], "not in PEM form"),
        (["--tls-cert", locked[0], "--tls-key", locked[1]], "RSTORED_TLS_KEY_PASSWORD"),
        (["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", nothing], "--tls-client-ca"),
        (["--tls-key", key], "--tls-cert"),
    ):
        command = [sys.executable, "-m", "rstored", "serve", "--port", "0", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert PASSWORD not in done.stderr
    assert not (tmp_path / "rstore.db").exists()


def test_who_does_not_shake_hands_is_cut_and_keeps_nobody_out(server, authority):
    context = ssl.create_default_context(cafile=authority.file)
    with (
        # Less than an idle connection may last.
        socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS_MAX) as silent,
        httpx2.Client(base_url=server.url, verify=context) as http,
    ):
        started = time.monotonic()
        assert http.get("/healthz").status_code == 200
        assert silent.recv(100) == b""
        assert time.monotonic() - started > 5
    assert not re.search(r"Traceback|Exception", server.log)


def first_flight() -> bytes:
    """What a client of TLS says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def test_a_handshake_that_is_cut_or_altered_anywhere_leaves_nothing_behind(serve, authority, tmp_path):
    server = serve(
        f"sqlite:///{tmp_path / 'store.db'}", env=tls_settings(*authority.issue("own", "127.0.0.1", "localhost"))
    )
    hello = first_flight()
    dice = random.Random(1)
    for cut in range(len(hello)):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            if cut % 2:
                # It ends in a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(hello[:cut])
    for _ in range(100):
        altered = bytearray(hello)
        altered[dice.randrange(len(hello))] ^= 1 << dice.randrange(8)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(altered)
    context = ssl.create_default_context(cafile=authority.file)
    with httpx2.Client(base_url=server.url, verify=context) as http:
        until(lambda: "rstored_connections 1.0\n" in http.get("/metrics").text)
    assert '"exception"' not in server.log


# --- handshakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["pool", "threads", "loop", "loops"])
def test_forked_processes_and_event_loops_have_sessions_of_their_own(program, server, authority):
    command = [sys.executable, forking.__file__, program, server.url, f"forks-{program}", authority.file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small(serve, authority, tmp_path):
    """Starts a service with TLS and some limits, in which a process may open few files."""

    def start(**limits: int):
        return serve(
            f"sqlite:///{tmp_path / 'store.db'}",
            env=tls_settings(*authority.issue("small", "127.0.0.1")),
            limits={name.upper(): n for name, n in limits.items()},
            preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 160)),
        )

    return start


def silent(server, client: str = "127.0.0.1", sent: bytes = b"") -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", server.port), timeout=10, source_address=(client, 0))
    connected.sendall(sent)
    return connected


# How long one may take.
HANDSHAKE_SECONDS = 10
# The begin of a handshake: 300 bytes are to follow.
PART_OF_A_HELLO = bytes([22, 3, 1, 1, 44, 1, 0, 1, 40, 3, 3])


@pytest.mark.parametrize("sent", [b"", PART_OF_A_HELLO], ids=["silent", "begun"])
def test_handshakes_that_never_end_make_room_as_idle_connections_do(small, authority, sent):
    server = small()
    context = ssl.create_default_context(cafile=authority.file)
    files = Path(f"/proc/{server.process.pid}/fd")
    with contextlib.ExitStack() as stack:
        for number in range(500):
            stack.enter_context(silent(server, f"127.0.0.{2 + number % 4}", sent))
        with httpx2.Client(base_url=server.url, verify=context, timeout=SECONDS_MAX) as http:
            limits = http.get("/").json()["limits"]
            assert http.put("/kv/k", json=1).is_success
            # It has not waited until the handshakes run out of time.
            assert 'rstored_closed_connections_total{reason="evicted"}' in http.get("/metrics").text
        assert len(list(files.iterdir())) < limits["connections_max"] + 40
    assert not re.search(r"Traceback|Exception|no connection can be accepted", server.log)


def test_handshakes_are_counted_per_client(small, authority):
    server = small(connections_per_client_max=3)
    context = ssl.create_default_context(cafile=authority.file)
    with contextlib.ExitStack() as stack:
        silent_ones = [stack.enter_context(silent(server)) for _ in range(3)]
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url}/healthz", verify=context)
        other = stack.enter_context(silent(server, "127.0.0.2"))
        with context.wrap_socket(other, server_hostname="127.0.0.1") as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 200")
        # One that is given up makes room at once.
        silent_ones[0].close()
        server.wait_until_read()
        assert httpx2.get(f"{server.url}/healthz", verify=context).status_code == 200


def test_it_stops_at_once_whoever_shakes_hands(small):
    server = small()
    started = time.monotonic()
    with silent(server), silent(server, sent=PART_OF_A_HELLO):
        server.wait_until_read()
        assert server.stop() == 0
        assert time.monotonic() - started < HANDSHAKE_SECONDS
