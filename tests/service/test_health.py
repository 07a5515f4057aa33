"""`python -m rstored.health`, the health check of the container image, against real services."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading

import pytest
from tests.certificates import new_authority


def health(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rstored.health"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("extra", [{}, {"RSTORED_ROOT_PATH": "/store"}, {"RSTORED_ADMIN_TOKEN": "x" * 32}])
def test_a_service_that_answers_is_healthy_on_any_address(serve, tmp_path, host, extra):
    environment = {"RSTORED_HOST": host, "RSTORED_INSECURE": "true", **extra}
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", host=host, env=environment)
    environment["RSTORED_PORT"] = str(service.port)
    found = health(environment)
    assert (found.returncode, found.stderr) == (0, "")
    service.process.send_signal(signal.SIGSTOP)
    try:
        found = health(environment)
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert found.returncode == 1
    assert found.stderr.startswith("rstored: unhealthy: ")


@pytest.mark.parametrize("client_ca", [False, True], ids=["server", "mutual"])
def test_a_service_with_tls_is_healthy(serve, tmp_path, client_ca):
    authority = new_authority(tmp_path / "tls")
    certificate, key = authority.issue("service", "rstore.example")
    environment = {"RSTORED_TLS_CERT": certificate, "RSTORED_TLS_KEY": key}
    if client_ca:
        environment["RSTORED_TLS_CLIENT_CA"] = authority.file
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", env=environment)
    environment["RSTORED_PORT"] = str(service.port)
    found = health(environment)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 500 Internal Server Error\r\n\r\n", b"220 mail.example ESMTP\r\n", b"\xff" * 100_000]
)
def test_what_is_not_a_healthy_service_is_unhealthy(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = health({"RSTORED_PORT": str(listener.getsockname()[1])})
        thread.join()
    assert found.returncode == 1
    assert found.stderr.startswith("rstored: unhealthy: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("port", ["", "many", "9"])
def test_nobody_there_is_unhealthy(port):
    found = health({"RSTORED_PORT": port})
    assert found.returncode == 1
    assert found.stderr.startswith("rstored: unhealthy: ")
    assert found.stderr.count("\n") == 1


def test_it_imports_nothing_that_takes_long():
    script = "import sys, rstored.health; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"pydantic", "typer", "fastapi", "asyncio"} & set(done.stdout.split())
