"""Fixtures for every test: the event loop, and real service processes."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import hypothesis
import pytest
from tests.forked import ForkedProcess
from tests.nginx import nginx_processes
from tests.waiting import SECONDS_MAX, has_read_everything, listens, until

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# A shell starts what it runs in the background with Ctrl-C ignored, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test trusts an authority of this machine. Otherwise each client that is made would read all of them.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

_KEY: Final = re.compile(r"[\w-]{43}=")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The processes that share the tests must find the same names, or no test runs. Keys are made at random."""
    for item in items:
        if _KEY.search(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid}: the name holds a key; give the parameters other `ids`")


def pytest_collection_finish() -> None:
    """Keep the collector from all that there is by now, which lives as long as this process.

    It takes a third of a second to look at it, and there are tests that ask for that a thousand times.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ServiceProcess:
    """``rstored serve`` in a process of its own. ``url`` and ``port`` are known once it is ready.

    It is forked from a process that has imported what it needs, and runs the Python code ``prelude`` first. If
    ``forked`` is false, as where its memory is measured, or something must be done before Python begins, it is started
    by its name.
    """

    def __init__(
        self,
        dsn: str | None,
        log: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        preexec: Callable[[], None] | None = None,
        prelude: str = "",
        forked: bool = True,
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RSTORE")}
        environment |= {f"RSTORED_LIMITS__{name}": str(value) for name, value in (limits or {}).items()}
        environment |= env or {}
        # Without one it comes from the environment.
        given = [] if dsn is None else ["--dsn", dsn]
        arguments = ["serve", *given, "--host", host, "--port", str(port)]
        self.url = ""
        self.port = port
        self._log_path = log
        self._log_file: IO[bytes] = log.open("wb")
        self.process: ForkedProcess | subprocess.Popen[bytes]
        if forked and not prefix and preexec is None:
            self.process = ForkedProcess("rstored", arguments, env=environment, stderr=self._log_file, prelude=prelude)
        else:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "rstored", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log_file,
                env=environment,
                preexec_fn=preexec,
            )

    def wait_until_ready(self) -> None:
        """Return when it listens; ``RuntimeError`` with its log if it does not."""
        stdout = self.process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], SECONDS_MAX)
        line = stdout.readline().decode() if readable else ""
        found = re.search(r"https?://\S+:(\d+)", line)
        if found is None:
            raise RuntimeError(f"the service did not start: {line}{self.log}")
        self.url, self.port = found[0], int(found[1])

    def wait_until_read(self) -> None:
        """Return when it has read all that its clients sent, and has closed the connections that they closed."""
        until(lambda: has_read_everything(self.port))

    def wait_until_stopping(self) -> None:
        """Return when it accepts no further connection, or has ended."""
        until(lambda: self.process.poll() is not None or not listens(self.port))

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log_path.read_text(errors="replace")

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that it took so far, which what else the machine does changes little; proc(5) has the fields."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_bytes(self) -> int:
        """The memory that it holds now."""
        return self._memory_bytes("VmRSS")

    @property
    def peak_bytes(self) -> int:
        """The most memory that it held at a time, since :meth:`forget_peak` if that was called."""
        return self._memory_bytes("VmHWM")

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _memory_bytes(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def stop(self) -> int:
        """Stop it as a supervisor does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS_MAX)

    def close(self) -> None:
        """Make sure that it is gone."""
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._log_file.close()


Serve = Callable[..., ServiceProcess]


@contextlib.contextmanager
def service_processes(folder: Path) -> Iterator[Serve]:
    """A function that starts service processes, each of which is gone at the end."""
    with contextlib.ExitStack() as stack:
        number = 0

        def serve(dsn: str | None, *, wait: bool = True, **options: Any) -> ServiceProcess:
            nonlocal number
            number += 1
            service = ServiceProcess(dsn, folder / f"service-{number}.log", **options)
            stack.callback(service.close)
            if wait:
                service.wait_until_ready()
            return service

        yield serve


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """``serve(dsn, *, wait, …)`` starts a :class:`ServiceProcess`."""
    with service_processes(tmp_path_factory.mktemp("services")) as serve:
        yield serve


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """As ``serve``, until the end of the module."""
    with service_processes(tmp_path_factory.mktemp("services")) as serve:
        yield serve


@pytest.fixture(scope="session")
def serve_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """As ``serve``, until the end of the session."""
    with service_processes(tmp_path_factory.mktemp("services")) as serve:
        yield serve


@pytest.fixture
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, int], str]]:
    """``nginx(servers, port)`` starts nginx with these ``server`` blocks, and returns its URL."""
    with nginx_processes(tmp_path_factory.mktemp("nginx")) as start:
        yield start
