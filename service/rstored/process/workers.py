"""Several worker processes that serve together, and the process that supervises them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NamedTuple, NoReturn

logger = logging.getLogger("rstored.workers")

_RESTART_SECONDS: Final = 1.0


class Worker(NamedTuple):
    """What a worker process knows of itself.

    The first worker writes a byte to the pipe ``serves`` as soon as it serves. The others wait for that. ``parent`` is
    readable when the supervising process is gone.
    """

    number: int
    serves: int | None
    parent: int


def run_workers(count: int, work: Callable[[Worker], int]) -> int:
    """Run ``work`` in ``count`` processes until SIGTERM or SIGINT, and return the exit code.

    The first worker starts alone. So a failure to start is reported once, and the storage is ready when the others
    start. A worker that ends is replaced, after a second if it had just begun.
    """
    return _Supervisor(work).run(count)


class _Supervisor:
    def __init__(self, work: Callable[[Worker], int]) -> None:
        self._work = work
        self._numbers: dict[int, int] = {}
        self._begun: dict[int, float] = {}
        self._stopping = False
        # Nothing is ever written to this pipe. It ends with this process, and the workers notice that.
        self._parent, self._alive = os.pipe()

    def run(self, count: int) -> int:
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, self._pass_on)
        # The workers share the objects that exist by now. The collector would copy their pages into each worker.
        gc.collect()
        gc.freeze()
        ready, serves = os.pipe()
        self._start(0, serves)
        os.close(serves)
        if not os.read(ready, 1):
            _, status = os.wait()
            return 0 if self._stopping else os.waitstatus_to_exitcode(status)
        for number in range(1, count):
            self._start(number)
        while self._numbers:
            pid, status = os.wait()
            number = self._numbers.pop(pid)
            if not self._stopping:
                logger.error("a worker ended", extra={"worker": number, "status": os.waitstatus_to_exitcode(status)})
                if time.monotonic() - self._begun[number] < _RESTART_SECONDS:
                    time.sleep(_RESTART_SECONDS)
            if not self._stopping:
                self._start(number)
        return 0

    def _start(self, number: int, serves: int | None = None) -> None:
        """Start a worker. The first one writes to ``serves`` when it serves."""
        self._begun[number] = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._become(Worker(number, serves, self._parent))
        self._numbers[pid] = number
        if self._stopping:
            os.kill(pid, signal.SIGTERM)

    def _become(self, worker: Worker) -> NoReturn:
        """Run as a worker, in the new process."""
        code = 1
        try:
            # Only the supervisor passes a Ctrl-C on to this process. Otherwise it would arrive twice.
            os.setpgid(0, 0)
            os.close(self._alive)
            for told in (signal.SIGTERM, signal.SIGINT):
                signal.signal(told, signal.SIG_DFL)
            code = self._work(worker)
        except BaseException:
            logger.exception("a worker failed")
        finally:
            logging.shutdown()
            os._exit(code)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._stopping = True
        for pid in self._numbers:
            os.kill(pid, number)
