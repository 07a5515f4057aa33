"""Batching: requests that arrive while a batch is under way form the next one.

No timer delays a batch. A single request starts at once. Under load, a batch has all requests that arrived while the
backend carried out the one before (and while those callers got their answers, unless the backend takes
``prompt_batches``). For writes this is group commit, and for reads coalescing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from rstored.backends.abc import Backend, HeadRead, Place, Plan, Query, Read, UnfitStorage, Update
from rstored.problems import Problem
from rstored.turns import Turns

READ_BATCH_MAX: Final = 256
WRITE_BATCH_MAX: Final = 512

WAIT_SECONDS: Final = 25.0
"""How long a request waits for its batch and the one before it. Every backend limits its batches to less."""

# The next batch waits for new requests for at most this many rounds of the event loop.
_ROUNDS_MAX: Final = 8

# How many reads whose answers may be long go in one batch. The memory of requests does not count an answer before it is
# there.
_LONG_READS_MAX: Final = 16

# With this many local reads in one round of the event loop, or more, it costs less to answer them together.
_MANY_READS: Final = 8

Observe: TypeAlias = Callable[[str, int, float], None]
"""Called after each batch with ``"read"`` or ``"write"``, the number of requests in it, and the seconds it took."""

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

_Waiting: TypeAlias = tuple[RequestT, "asyncio.Future[AnswerT]", float]


class Storage:
    """The one way from the engine to its backend. It gathers single reads and updates into batches.

    It calls ``observe`` for every batch. Long work takes one of the ``turns`` for each of its pieces.

    If a caller is cancelled while its request waits, the request is dropped. If its batch is under way already, the
    batch goes on, and the write may take place.
    """

    def __init__(self, backend: Backend, observe: Observe | None = None) -> None:
        self.backend = backend
        self._observe = observe
        self._local_reads = backend.capabilities.local_reads
        prompt = backend.capabilities.prompt_batches
        # A long local read never waits here.
        self._reads: _Batches[Query, list[Any]] = _Batches(
            "read",
            self._read_together,
            READ_BATCH_MAX,
            observe,
            prompt=prompt,
            is_long=None if self._local_reads else _may_be_long,
        )
        # How many local reads came in this round of the event loop, and in the last one that had any.
        self._reads_in_round = 0
        self._reads_in_last_round = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._updates: _Batches[Update[Any], Any] = _Batches(
            "write", backend.update, WRITE_BATCH_MAX, observe, prompt=prompt
        )
        # Why the backend cannot be used at present, according to its last ping.
        self._unfit: UnfitStorage | None = None
        # Over a network, some pieces are fetched while another one is worked on.
        self.turns = Turns(1 if self._local_reads else 4)

    def read(self, *reads: Read) -> Awaitable[list[Any]]:
        """The results of the reads, in order, all of one snapshot. Raises :class:`Problem`, here or when awaited."""
        self._check_fit()
        if self._local_reads and (_may_be_long(reads) or self._are_few()):
            return self._read_at_once(reads)
        return self._reads.submit(reads)

    def _check_fit(self) -> None:
        if self._unfit is not None:
            raise self._unfit.again()

    def _are_few(self) -> bool:
        """Whether this local read is the first of its round of the event loop, or few are expected in it."""
        count = self._reads_in_round = self._reads_in_round + 1
        if count > 1:
            # Nobody knows how many are still to come. The last round is the best guess.
            return self._reads_in_last_round < _MANY_READS
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._end_round)
        return True

    def _end_round(self) -> None:
        self._reads_in_last_round, self._reads_in_round = self._reads_in_round, 0

    async def _read_together(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        # What they find may be no older than the last of them.
        self.backend.renew()
        return await self.backend.read(queries)

    async def _read_at_once(self, reads: Query) -> list[Any]:
        started = time.perf_counter()
        (result,) = await self.backend.read((reads,))
        if self._observe is not None:
            self._observe("read", 1, time.perf_counter() - started)
        if isinstance(result, Problem):
            raise result.again()
        return result

    async def read_in_turn(self, *reads: Read) -> list[Any]:
        """Like :meth:`read`, for reads that may find much: others have their turns in between."""
        async with self.turns:
            self._check_fit()
            # A local backend must not answer several of these before others have their turns.
            return await (self._read_at_once(reads) if self._local_reads else self._reads.submit(reads))

    def update(self, places: tuple[Place, ...], plan: Plan[AnswerT]) -> Awaitable[AnswerT]:
        """Carry out one atomic, durable update (see :class:`~rstored.backends.abc.Update`) and return its answer.

        Raises the :class:`Problem` that the plan or the backend raised, here or when awaited.
        """
        self._check_fit()
        return self._updates.submit(Update(places, plan))

    async def ping(self) -> None:
        """Ask whether the backend can be used. As long as it says no, all reads and updates are refused.

        Raises :class:`Problem` if it says no, or does not answer.
        """
        try:
            await self.backend.ping()
        except UnfitStorage as problem:
            self._unfit = problem
            raise
        self._unfit = None

    async def close(self) -> None:
        """Refuse new requests, and return when all earlier ones are done. The backend stays open."""
        await asyncio.gather(self._reads.close(), self._updates.close())


def _may_be_long(reads: Query) -> bool:
    """Whether the answer may take much memory. An answer of heads with bounded values does not."""
    for read in reads:  # noqa: SIM110 - quicker than any(), and each read comes by here
        if type(read) is not HeadRead or read.bytes_max is None:
            return True
    return False


class _Batches(Generic[RequestT, AnswerT]):
    """Requests of one kind on their way to the backend. At most one batch of them is under way at a time."""

    def __init__(
        self,
        kind: str,
        send: Callable[[Sequence[RequestT]], Awaitable[Sequence[AnswerT | Problem]]],
        size_max: int,
        observe: Observe | None,
        *,
        prompt: bool = False,
        is_long: Callable[[RequestT], bool] | None = None,
    ) -> None:
        self._prompt = prompt
        self._is_long = is_long
        self._kind = kind
        self._send = send
        self._size_max = size_max
        self._observe = observe
        # Each waits with the time at which it is given up.
        self._waiting: deque[_Waiting[RequestT, AnswerT]] = deque()
        self._under_way: list[_Waiting[RequestT, AnswerT]] = []
        self._sender: asyncio.Task[None] | None = None
        # One timer serves all that wait. A timer for each would cost more than the waiting.
        self._timer: asyncio.TimerHandle | None = None
        # It is looked up once, because the lookup is a system call in Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def submit(self, request: RequestT) -> asyncio.Future[AnswerT]:
        """The answer, which arrives with its batch. Raises Problem, here or when awaited."""
        if self._closed:
            raise Problem("shutting-down", "the service is stopping; try again when it is back")
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        deadline = loop.time() + WAIT_SECONDS
        self._waiting.append((request, future, deadline))
        if self._sender is None:
            # The task begins in the next round of the loop, so the requests of one round share a batch.
            self._sender = loop.create_task(self._send_all())
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._give_up)
        return future

    async def close(self) -> None:
        self._closed = True
        if self._sender is not None:
            await asyncio.wait([self._sender])
        if self._timer is not None:
            self._timer.cancel()

    async def _send_all(self) -> None:
        try:
            while batch := self._next_batch():
                await self._send_batch(batch)
                if not self._prompt:
                    await self._gather()
        finally:
            self._sender = None

    async def _gather(self) -> None:
        """Wait as long as each round of the event loop brings new requests.

        Clients that just got answers send their next requests at once. If the next batch began without them, two
        batches of half the size would alternate for ever, and each would cost as much to begin and end as a whole one.
        """
        await asyncio.sleep(0)
        before = -1
        for _ in range(_ROUNDS_MAX):
            if len(self._waiting) == before:
                return
            before = len(self._waiting)
            await asyncio.sleep(0)

    def _next_batch(self) -> list[_Waiting[RequestT, AnswerT]]:
        batch: list[_Waiting[RequestT, AnswerT]] = []
        long = 0
        while self._waiting and len(batch) < self._size_max and long < _LONG_READS_MAX:
            waiting = self._waiting.popleft()
            if not waiting[1].done():
                batch.append(waiting)
                if self._is_long is not None:
                    long += self._is_long(waiting[0])
        self._under_way = batch
        return batch

    async def _send_batch(self, batch: list[_Waiting[RequestT, AnswerT]]) -> None:
        started = time.perf_counter()
        results: Sequence[AnswerT | Exception]
        try:
            results = await self._send([request for request, _, _ in batch])
        except Problem as problem:
            results = [problem] * len(batch)
        except Exception as error:
            results = [error] * len(batch)
        if self._observe is not None:
            self._observe(self._kind, len(batch), time.perf_counter() - started)
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Problem):
                future.set_exception(result.again())
            elif isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _give_up(self) -> None:
        """Give up every request that has waited too long, even if the batch that is under way does not end."""
        self._timer = None
        loop = asyncio.get_running_loop()
        # The loop may call this a little too early.
        now = loop.time() + 0.001
        for _, future, deadline in (*self._under_way, *self._waiting):
            if future.done():
                continue
            if deadline > now:
                self._timer = loop.call_at(deadline, self._give_up)
                return
            detail = f"the backend took longer than {WAIT_SECONDS:.0f} seconds and may still do it later: try again"
            future.set_exception(Problem("backend-unavailable", detail))
