"""The one exception that carries a failure from any layer to the answer. It has a stable code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Self, TypeVar

from rstore.core.errors import PROBLEMS, ProblemType, beyond

P = ParamSpec("P")
T = TypeVar("T")


class Problem(Exception):
    """A failure with a ``code`` of :data:`rstore.core.errors.PROBLEMS` and a ``detail`` that says what to do.

    ``members`` are more members of the problem document (``pointer``, ``limit``, ``revision``, …). Neither they nor the
    detail may contain a value, a token or a path of the machine.
    """

    def __init__(self, code: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.members = members

    @classmethod
    def beyond(cls, code: str, found: str, limit: int, remedy: str = "", **members: Any) -> Problem:
        """The problem of something that is more, larger or longer than a limit allows.

        >>> Problem.beyond("batch-too-large", "the batch has 11 parts", 10).detail
        'the batch has 11 parts; at most 10 are allowed'
        """
        return cls(code, beyond(found, limit, remedy), limit=limit, **members)

    def again(self) -> Self:
        """A new exception that says the same, to be raised somewhere else.

        If several callers raised the same one, it would collect the tracebacks of all. This one forgets the frames that
        it came through. They may hold it, and each frame holds its caller, so a cycle would keep the request with its
        body until the cyclic collector runs, which is seldom.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        kind = type(self)
        again = kind.__new__(kind, *self.args)
        again.__dict__.update(self.__dict__)
        return again

    @property
    def type(self) -> ProblemType:
        """The code's row: status, title, SDK exception."""
        return PROBLEMS[self.code]


def damaged(what: str) -> Problem:
    """The problem of something in the storage that this program cannot have written."""
    return Problem("backend-corrupt", f"damaged in the storage: {what}; restore a backup")


def of_storage(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that decodes what lies in the storage, and raises Problem ``backend-corrupt`` where it cannot.

    The function must be pure. This program wrote what it is given, so whatever it raises means that the storage is
    damaged.

    >>> of_storage("a number")(int)("12")
    12
    """

    def decorate(decode: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(decode)
        def decoded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return decode(*args, **kwargs)
            except Exception as error:
                if isinstance(error, Problem) and error.code == "backend-corrupt":
                    raise
                raise damaged(what) from error

        return decoded

    return decorate
