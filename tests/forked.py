"""The commands ``rstore`` and ``rstored``, forked from a process that has imported them.

Imports are nearly all of a command's start: a second of CPU time for a service, and the tests need hundreds. All else
is as if the command had been started by its name: arguments, environment, streams, signals and exit code. Only the
interpreter has begun already, so a test of imports, or of what Python itself reads from the environment, starts a
command by its name.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

# Where the main function of each command is, and what a command imports only when it needs it.
COMMANDS: Final = {"rstore": "rstore.cli", "rstored": "rstored.__main__"}
IMPORTED: Final = (
    "rstore.cli.program",
    "rstored.cli.main",
    "rstored.backends.sqlite.backend",
    "rstored.backends.postgresql.backend",
    "rstored.backends.redis.backend",
)
# The process that forks writes two for each command: its process id, and when it has ended its status.
_NUMBER: Final = struct.Struct("q")


class ForkedProcess:
    """A command that runs, with those methods of ``subprocess.Popen`` that tests use.

    ``prelude`` is Python code that runs before the command. Where ``stdout`` is None, it is a pipe.
    """

    def __init__(
        self,
        command: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes],
        prelude: str = "",
    ) -> None:
        self.args = [command, *arguments]
        self.returncode: int | None = None
        self.stdout: IO[bytes] | None = None
        request = {"command": command, "arguments": arguments, "env": dict(env), "cwd": os.getcwd(), "prelude": prelude}
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(tempfile.TemporaryFile())
            asked.write(json.dumps(request).encode())
            asked.seek(0)
            if stdin is None:
                stdin = stack.enter_context(open(os.devnull, "rb"))
            if stdout is None:
                reader, stdout = os.pipe()
                stack.callback(os.close, stdout)
                self.stdout = os.fdopen(reader, "rb")
            told, telling = os.pipe()
            stack.callback(os.close, telling)
            self._told = os.fdopen(told, "rb", buffering=0)
            _forks()([asked.fileno(), telling, *(_number(stream) for stream in (stdin, stdout, stderr))])
        (self.pid,) = _NUMBER.unpack(self._told.read(_NUMBER.size))

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; ``subprocess.TimeoutExpired`` if that takes longer."""
        if self.returncode is None:
            readable, _, _ = select.select([self._told], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            (status,) = _NUMBER.unpack(self._told.read(_NUMBER.size))
            self._told.close()
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run(
    command: str,
    *arguments: str,
    env: Mapping[str, str],
    stdin: bytes = b"",
    stdout: int | IO[bytes] | None = None,
    prelude: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """What became of a command. Its output is captured, unless ``stdout`` says where it goes."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        stdout = out if stdout is None else stdout
        process = ForkedProcess(command, arguments, env=env, stdin=given, stdout=stdout, stderr=err, prelude=prelude)
        try:
            code = process.wait(60)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read(), err.read())


def _number(stream: int | IO[bytes]) -> int:
    return stream if isinstance(stream, int) else stream.fileno()


@functools.cache
def _forks() -> Callable[[list[int]], None]:
    """Start the process that forks; returns what sends it the file descriptors of a request. It ends with this one."""
    control, theirs = socket.socketpair()
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    lock = threading.Lock()

    def end() -> None:
        control.close()
        process.wait()

    def ask(descriptors: list[int]) -> None:
        with lock:
            socket.send_fds(control, [b"!"], descriptors)

    atexit.register(end)
    return ask


# --- the process that forks --------------------------------------------------------------------------------


def _next_command(control: socket.socket) -> Callable[[], Any] | None:
    """Fork for each request. Returns the command to run in the new process, or None when nobody can ask any more."""
    pipes: dict[int, int] = {}

    def tell_ends(*_: object) -> None:
        for pid in list(pipes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pipe = pipes.pop(pid)
                # Nobody may wait for it.
                with contextlib.suppress(BrokenPipeError):
                    os.write(pipe, _NUMBER.pack(status))
                os.close(pipe)

    signal.signal(signal.SIGCHLD, tell_ends)
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, 1, 5)
        if not told:
            for pid in pipes:
                os.kill(pid, signal.SIGKILL)
            return None
        asked, telling, *streams = descriptors
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            return _command(asked, streams)
        pipes[pid] = telling
        os.write(telling, _NUMBER.pack(pid))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for descriptor in (asked, *streams):
            os.close(descriptor)


def _command(asked: int, streams: list[int]) -> Callable[[], Any]:
    """Become the process that is asked for."""
    with open(asked, "rb") as file:
        request = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    # A command begins with these three files and no other.
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [request["command"], *request["arguments"]]
    exec(request["prelude"], {})
    main: Callable[[], Any] = importlib.import_module(COMMANDS[request["command"]]).main
    return main


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    # All processes share what there is by now; their collectors would copy its pages into each.
    gc.collect()
    gc.freeze()
    if command := _next_command(socket.socket(fileno=int(sys.argv[1]))):
        command()
