"""Throwaway Redis and PostgreSQL servers for the tests: real processes, each with a free port and a folder of its own.

They end with the test run, also when it is killed, and leave nothing behind. Servers that many tests can share are
started by :func:`redis_server`, :func:`redis_cluster` and :func:`postgresql_server` when they are first asked for; give
each test a prefix or schema of its own (:func:`fresh_dsn`). Tests that stop or kill one make their own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import http.client
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Self, TypeVar

from tests.waiting import SECONDS_MAX, until

ServerT = TypeVar("ServerT", bound="Server | RedisCluster")

HOST = "127.0.0.1"
_PDEATHSIG = 1
_FOLDER = "rstore-server-"


# --- what is installed -------------------------------------------------------------------------------------


@functools.cache
def binary(*names: str) -> str | None:
    """The first of these programs that is installed; PostgreSQL's are often not on the path."""
    folders = [os.environ.get("PATH", os.defpath)]
    for root in ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"):
        with contextlib.suppress(OSError):
            homes = sorted(Path(root).glob("*/bin"), key=lambda path: path.parent.name.zfill(9), reverse=True)
            folders += map(str, homes)
    path = os.pathsep.join(folders)
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _missing(what: str, package: str, *programs: tuple[str, ...]) -> str | None:
    absent = [names[0] for names in programs if binary(*names) is None]
    if not absent:
        return None
    reason = f"{what} is not installed ({', '.join(absent)} not found): apt-get install {package}"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        raise RuntimeError(reason)
    return reason


def missing_redis() -> str | None:
    """Why no Redis server can be started here, or None. With CI=true it is an error."""
    return _missing("Redis", "redis-server", ("redis-server", "valkey-server"), ("redis-cli", "valkey-cli"))


def missing_postgresql() -> str | None:
    """Why no PostgreSQL server can be started here, or None. With CI=true it is an error."""
    return _missing("PostgreSQL", "postgresql", ("initdb",), ("postgres",), ("pg_basebackup",))


# --- processes ---------------------------------------------------------------------------------------------


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, nor on the one 10,000 above, which a node of a Redis Cluster takes as well.

    Both are out of the range that outgoing connections are given, so that no connection takes them meanwhile.
    """
    while True:
        port = random.randrange(12_000, 22_000)
        if port not in _given and all(map(_is_free, (port, port + 10_000))):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


@functools.cache
def _remove_abandoned() -> None:
    """Remove the folders of test runs that were killed; their servers died with them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _die_with_parent() -> None:
    """Have the kernel end the new process when the test run dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


class Server:
    """A process with a folder and a port of its own."""

    def __init__(self) -> None:
        self.user = _unprivileged_user() if self.drops_root and os.geteuid() == 0 else None
        _remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self.port = free_port()
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    drops_root = False

    @property
    def dsn(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def listens(self) -> bool:
        """Whether it accepts connections."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    def says_yes(self, path: str) -> bool:
        """Whether it answers a GET over HTTP with 2xx."""
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=1),
        ):
            return True
        return False

    def start(self) -> None:
        """Start it, again if it was stopped, and wait until it serves."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                user=self.user,
                preexec_fn=_die_with_parent,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not self.answers():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command()[0]} did not start: {log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as a supervisor does."""
        self._end(self.stop_signal)

    stop_signal = signal.SIGTERM
    close_signal = signal.SIGKILL

    def kill(self) -> None:
        """Kill it (-9)."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Have it hang: it accepts connections and says nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        try:
            self._end(self.close_signal)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _end(self, number: int) -> None:
        self._signal(number)
        if self.process is not None:
            self._signal(signal.SIGCONT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unprivileged_user() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


# --- Redis -------------------------------------------------------------------------------------------------


class RedisServer(Server):
    """A Redis server whose acknowledged writes survive a kill; ``options`` are lines of its configuration."""

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = options

    @property
    def dsn(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def command(self) -> list[str]:
        program = binary("redis-server", "valkey-server")
        assert program is not None
        options = [f"port {self.port}", f"bind {HOST}", f"dir {self.folder}", "save ''", *self.options]
        if not any(option.startswith("appendonly") for option in self.options):
            options += ["appendonly yes", "appendfsync always"]
        return [program, *(word for option in options for word in f"--{option}".split(" ", 1))]

    def answers(self) -> bool:
        return self.cli("PING") == "PONG"

    def cli(self, *arguments: str) -> str:
        """What redis-cli says to a command; empty if it does not answer."""
        program = binary("redis-cli", "valkey-cli")
        assert program is not None
        done = subprocess.run(
            [program, "-h", HOST, "-p", str(self.port), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout.strip()


class RedisCluster:
    """A Redis Cluster of three masters and three replicas."""

    def __init__(self, *options: str, node_timeout_ms: int = 1_000) -> None:
        settings = (
            "cluster-enabled yes",
            f"cluster-node-timeout {node_timeout_ms}",
            "cluster-replica-validity-factor 0",
            "repl-diskless-sync-delay 0",
        )
        self.nodes = [RedisServer(*settings, *options) for _ in range(6)]

    @property
    def dsn(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_until_ready()
        # What `redis-cli --cluster create` does, without its pauses.
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for number, (master, slots) in enumerate(zip(masters, ("0 5460", "5461 10922", "10923 16383"), strict=True), 1):
            master.cli("CLUSTER", "SET-CONFIG-EPOCH", str(number))
            master.cli("CLUSTER", "ADDSLOTSRANGE", *slots.split())
        for node in self.nodes[1:]:
            self.nodes[0].cli("CLUSTER", "MEET", HOST, str(node.port))
        until(lambda: all(node.cli("CLUSTER", "INFO").count("cluster_known_nodes:6") for node in self.nodes))
        for master, replica in zip(masters, replicas, strict=True):
            replica.cli("CLUSTER", "REPLICATE", master.cli("CLUSTER", "MYID"))
        until(lambda: len(self.replicas()) == 3)
        until(lambda: all(self._knows_all(node) for node in self.nodes))

    @staticmethod
    def _knows_all(node: RedisServer) -> bool:
        return (
            "cluster_state:ok" in node.cli("CLUSTER", "INFO")
            and node.cli("CLUSTER", "NODES").count(" slave ") + (node.cli("CLUSTER", "NODES").count("myself,slave"))
            == 3
        )

    def masters(self) -> list[RedisServer]:
        """The nodes that serve slots now."""
        return [node for node in self.nodes if self._role(node) == "master"]

    def replicas(self) -> list[RedisServer]:
        """The nodes that copy a master and are up to date with it."""
        return [
            node
            for node in self.nodes
            if self._role(node) == "slave" and "master_link_status:up" in node.cli("INFO", "replication")
        ]

    def replicated(self) -> bool:
        """Whether the replicas of each master have all that it wrote."""
        for master in self.masters():
            written = re.search(r"^master_repl_offset:(\d+)", report := master.cli("INFO", "replication"), re.MULTILINE)
            if written is None or f",offset={written[1]}," not in report:
                return False
        return True

    def _role(self, node: RedisServer) -> str:
        return node.cli("ROLE").partition("\n")[0]

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- PostgreSQL --------------------------------------------------------------------------------------------


class PostgreSQLServer(Server):
    """A PostgreSQL server with a database ``test`` for the user ``test``; with ``primary`` its streaming replica.

    ``options`` are lines of its configuration.
    """

    drops_root = True
    stop_signal = signal.SIGINT
    # At once, but it gives its shared memory back.
    close_signal = signal.SIGQUIT

    def __init__(self, *options: str, primary: PostgreSQLServer | None = None) -> None:
        super().__init__()
        self.options = options
        self.primary = primary
        self.data = self.folder / "data"

    @property
    def dsn(self) -> str:
        return f"postgresql://test@{HOST}:{self.port}/test"

    def launch(self) -> None:
        if not self.data.exists():
            self._initialize()
        super().launch()

    def command(self) -> list[str]:
        return [self._program("postgres"), "-D", str(self.data)]

    def answers(self) -> bool:
        command = [self._program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def promote(self) -> None:
        """Make the replica a primary."""
        self._run("pg_ctl", "promote", "-w", "-D", str(self.data))

    def sql(self, statement: str) -> str:
        """What psql says to a statement of the superuser."""
        return self._run("psql", "-h", str(self.folder), "-p", str(self.port), "-U", "admin", "-Atc", statement, "test")

    def _initialize(self) -> None:
        if self.primary is None:
            self._run("initdb", "-D", str(self.data), "-U", "admin", "-E", "UTF8", "--locale=C", "-A", "trust", "-N")
        else:
            source = f"host={HOST} port={self.primary.port} user=admin"
            self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast")
        settings = [
            f"port = {self.port}",
            f"listen_addresses = '{HOST}'",
            f"unix_socket_directories = '{self.folder}'",
            "shared_buffers = 32MB",
            "max_wal_size = 256MB",
            *self.options,
        ]
        # The last line of several on one setting counts, so a replica's follow those of its primary.
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write("\n".join(["", *settings, ""]))
        if self.primary is None:
            for database, statement in (
                ("postgres", "CREATE ROLE test LOGIN"),
                ("postgres", "CREATE DATABASE test OWNER test"),
            ):
                self._single(database, statement)

    def _single(self, database: str, statement: str) -> None:
        self._run("postgres", "--single", "-D", str(self.data), database, given=statement + "\n")

    def _run(self, program: str, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [self._program(program), *arguments],
            cwd=self.folder,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            user=self.user,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    @staticmethod
    def _program(name: str) -> str:
        # Those of one version belong together.
        initdb = binary("initdb")
        assert initdb is not None
        beside = Path(initdb).resolve().with_name(name)
        found = str(beside) if beside.exists() else binary(name)
        assert found is not None, name
        return found


# --- shared ones -------------------------------------------------------------------------------------------


@functools.cache
def redis_server() -> RedisServer:
    """The Redis server that tests share."""
    return _started(RedisServer())


@functools.cache
def redis_cluster() -> RedisCluster:
    """The Redis Cluster that tests share."""
    return _started(RedisCluster(node_timeout_ms=15_000))


@functools.cache
def postgresql_server() -> PostgreSQLServer:
    """The PostgreSQL server that tests share."""
    return _started(PostgreSQLServer())


def _started(server: ServerT) -> ServerT:
    server.__enter__()
    atexit.register(server.close)
    return server


def fresh_dsn(server: RedisServer | RedisCluster | PostgreSQLServer, **parameters: str | int) -> str:
    """The DSN of an empty store on a shared server; ``parameters`` are further ones of the DSN."""
    name = "schema" if isinstance(server, PostgreSQLServer) else "prefix"
    parameters = {name: f"t{secrets.token_hex(6)}", **parameters}
    return f"{server.dsn}?{'&'.join(f'{key}={value}' for key, value in parameters.items())}"
