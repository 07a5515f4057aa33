"""The one exception that carries a failure from any layer to the answer: a problem with a stable code."""

from __future__ import annotations

from typing import Any

from rstore.core.errors import PROBLEMS, ProblemType

__all__ = ["Problem"]


class Problem(Exception):
    """A failure with a ``code`` out of :data:`rstore.core.errors.PROBLEMS` and a ``detail`` that says what to do.

    ``members`` are extra members of the problem document (``pointer``, ``limit``, ``revision``, …); neither
    they nor the detail may hold a value, a token or a path of the machine.
    """

    def __init__(self, code: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.members = members

    @classmethod
    def beyond(cls, code: str, found: str, limit: int, remedy: str = "", **members: Any) -> Problem:
        """What is more, larger or longer than a limit allows.

        >>> Problem.beyond("batch-too-large", "the batch has 11 parts", 10).detail
        'the batch has 11 parts; at most 10 are allowed'
        """
        return cls(code, f"{found}; at most {limit} are allowed{remedy}", limit=limit, **members)

    @property
    def type(self) -> ProblemType:
        """The code's row: status, title, SDK exception."""
        return PROBLEMS[self.code]
