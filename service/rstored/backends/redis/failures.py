"""The problems that Redis's failures mean."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from rstored.problems import Problem, damaged

# The errors of redis-py, and those of the sockets below it. asyncio's TimeoutError is an OSError.
FAILURES: Final = (RedisError, OSError)

LOST: Final = (
    "the store that was opened is not in Redis any more: restore it, or restart the service to use the present one"
)


def lost() -> Problem:
    """The problem of a request whose store does not exist any more."""
    return Problem("backend-unavailable", LOST)


class Stale(Exception):
    """A bucket does not belong to the namespace ``name`` any more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def not_atomic() -> Problem:
    return Problem(
        "batch-not-atomic",
        "these keys lie in different parts of the Redis Cluster, which cannot change them in one step: give them a "
        "common {part} in braces, or send them one by one",
    )


def problem_of(error: Exception) -> Exception:
    """The same as :func:`translated`, but as a new exception for each waiting request."""
    return Problem(error.code, error.detail) if isinstance(error, Problem) else translated(error)


def translated(error: BaseException) -> Exception:
    """The problem that an error means. An error that can only be a mistake of ours comes back as it is."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return Problem("storage-full", "Redis has reached its maxmemory: give it more or delete something")
    if isinstance(error, AuthenticationError | NoPermissionError) or _REFUSED.match(text):
        detail = "Redis refuses the user or password of the DSN, or the user may not run every command"
        return Problem("backend-unavailable", detail)
    if text.startswith("DAMAGED"):
        return damaged("a record")
    if "WRONGTYPE" in text:
        return Problem(
            "backend-corrupt", "a key of the store has another type: another program may use the same prefix"
        )
    if text.startswith("MISCONF"):
        return Problem("backend-unavailable", "Redis cannot write to its disk and takes no writes: see its log")
    if text.startswith("ROWS"):
        return AssertionError(text)
    if isinstance(error, ResponseError) and text.startswith("ERR") and "max number of clients" not in text:
        return error
    if isinstance(error, ReadOnlyError) or text.startswith("READONLY"):
        return Problem("backend-unavailable", IS_REPLICA)
    return Problem("backend-unavailable", _UNAVAILABLE)


# The last three are errors of a script whose user may not run a command or touch a key.
_REFUSED: Final = re.compile(
    "NOAUTH|WRONGPASS|NOPERM|.*(ACL failure in script|can't run this command|can't access at least one of the keys)"
)
IS_REPLICA: Final = "Redis is a replica, which takes no writes and may be behind: name its primary in the DSN"
_UNAVAILABLE: Final = "Redis does not answer or turns requests away: try again"


def unusable(error: Exception) -> Problem:
    """The problem of a store that cannot be opened. The DSN or the server may be wrong."""
    problem = problem_of(error)
    if isinstance(problem, Problem) and problem.detail != _UNAVAILABLE:
        return problem
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem("backend-unavailable", f"cannot connect to Redis: {reason[:300]}")
