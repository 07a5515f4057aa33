"""The steps in which an operation is carried out: what to send next, and how long to wait before that.

A store that blocks and one that awaits differ only in how they do these two things.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from rstore.calls import Call, Steps, TryAgain
from rstore.calls.call import Spending
from rstore.core.errors import StoreError
from rstore.transport.attempts import Attempts
from rstore.transport.budget import Budget

T = TypeVar("T")


class Exchange(NamedTuple):
    """A call to send, the budget of its answer, and how long to wait before that."""

    call: Call[Any]
    budget: Budget
    pause_seconds: float


class OperationBounds(NamedTuple):
    """The bounds of an operation: bytes and seconds of all its answers, and attempts of each call."""

    answer_bytes_max: int
    operation_seconds_max: float
    retries: int
    attempts_seconds_max: float

    def budget(self) -> Budget:
        return Budget(self.answer_bytes_max, self.operation_seconds_max)


def carried_out(steps: Steps[T], bounds: OperationBounds) -> Generator[Exchange, Any, T]:
    """Carry out an operation.

    It yields what to do, and the store sends it the answer, or throws the error or :class:`~rstore.calls.TryAgain`.
    It returns the result.
    """
    budget = bounds.budget()
    try:
        step = next(steps)
        while True:
            try:
                answer = budget.spend if isinstance(step, Spending) else (yield from _sent(step, budget, bounds))
            except StoreError as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _sent(call: Call[T], budget: Budget, bounds: OperationBounds) -> Generator[Exchange, Any, T]:
    """Send a call, several times if that is necessary."""
    if call.own_budget:
        budget = bounds.budget()
    attempts = Attempts(call, bounds.retries, bounds.attempts_seconds_max)
    pause_seconds = 0.0
    while True:
        try:
            answer: T = yield Exchange(call, budget, pause_seconds)
        except TryAgain as failure:
            pause_seconds = attempts.pause_seconds(failure)
        except StoreError as error:
            raise attempts.conclude(error) from error.__cause__
        else:
            return answer
