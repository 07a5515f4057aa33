"""Every kind of failure: the table of problem codes, and the exceptions that the SDK raises for them.

The service answers each failure with a problem document (RFC 9457) whose ``code`` is a row of :data:`PROBLEMS`. The SDK
raises the exception of that row. The tree::

    Exception
    └── StoreError                     anything that went wrong with a store
        ├── StoreNotAvailableError     no answer, or the service or its backend cannot serve now
        ├── FrozenStoreError           a write through a frozen store; nothing was sent
        ├── StoreIntegrityError        an event that the sequence cannot take; nothing was stored
        ├── StoreConflictError         a condition or an expected revision no longer holds
        ├── StoreRequestError          the request itself is wrong; sending it again cannot help
        ├── StoreNotFoundError         the route, namespace, series or sequence does not exist
        ├── StoreLimitError            something is larger, longer, deeper or more than a limit allows
        ├── StoreAuthenticationError   no token, or one the service does not know
        ├── StoreAccessError           the token does not reach this namespace or this operation
        ├── StoreEncodingError         a value that cannot be encoded, or must not be decoded
        ├── StoreDecryptionError       a value that is not sealed for this place under any given key
        └── StoreProtocolError         an answer that no rstore service gives
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

__all__ = [
    "PROBLEMS",
    "FrozenStoreError",
    "ProblemType",
    "StoreAccessError",
    "StoreAuthenticationError",
    "StoreConflictError",
    "StoreDecryptionError",
    "StoreEncodingError",
    "StoreError",
    "StoreIntegrityError",
    "StoreLimitError",
    "StoreNotAvailableError",
    "StoreNotFoundError",
    "StoreProtocolError",
    "StoreRequestError",
    "beyond",
]


def beyond(found: str, limit: int, remedy: str = "") -> str:
    """The sentence for something that is more, larger or longer than a limit allows.

    >>> beyond("the batch has 11 parts", 10, ": send two")
    'the batch has 11 parts; at most 10 are allowed: send two'
    """
    return f"{found}; at most {limit} are allowed{remedy}"


class StoreError(Exception):
    """Any failure of a store. Every other exception of the SDK is a subclass.

    Attributes:
        code: The stable code of the problem, such as ``key-not-found``; None if the failure has none.
        status: The HTTP status of the answer; None if there was no answer.
        request_id: The id by which the service's log names the request; None if it is not known.
        problem: The problem document of the answer, a dict. It is empty if there was none.
        done: True: the write was carried out, and something failed after it. Do not send it again.
        outcome_unknown: True: the write may have been carried out, in whole or in part, or may yet be. If this and
            ``done`` are False, nothing was written.

    Example:
        >>> StoreError("no answer", status=503).status
        503
    """

    outcome_unknown: bool = False
    done: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        problem: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id
        self.problem = problem or {}


class StoreNotAvailableError(StoreError):
    """The service does not answer, or it or its backend cannot serve now. The same call may succeed later."""


class FrozenStoreError(StoreError):
    """A write through a store that was opened with ``frozen=True``. Nothing was sent."""


class StoreIntegrityError(StoreError):
    """An event that the sequence cannot take: its timestamp is taken, or it cannot be folded. Nothing was stored."""


class StoreConflictError(StoreError):
    """A condition (an ETag, an expected revision) does not hold, for example because somebody else wrote first."""


class StoreRequestError(StoreError):
    """The request itself is wrong. It would fail again."""


class StoreNotFoundError(StoreError):
    """The route, namespace, series or sequence does not exist."""


class StoreLimitError(StoreError):
    """Something is larger, longer, deeper or more than a limit allows. ``GET /`` publishes the limits."""


class StoreAuthenticationError(StoreError):
    """The service needs a token, or does not know the one that was sent."""


class StoreAccessError(StoreError):
    """The token does not reach this namespace or this operation."""


class StoreEncodingError(StoreError):
    """A Python value that cannot be encoded, or a stored value that must not be decoded."""


class StoreDecryptionError(StoreError):
    """A stored value that is not sealed for its place under any of the given keys."""


class StoreProtocolError(StoreError):
    """An answer that no rstore service gives: malformed, of the wrong type, or larger than it may be."""


class ProblemType(NamedTuple):
    """A row of :data:`PROBLEMS`: HTTP status, fixed title, and the SDK's exception."""

    status: int
    title: str
    exception: type[StoreError]


PROBLEMS: Final[dict[str, ProblemType]] = {
    # The request cannot be read.
    "malformed-request": ProblemType(400, "The request is not valid HTTP for this route", StoreRequestError),
    "unsupported-http-version": ProblemType(505, "The service speaks HTTP/1.1", StoreRequestError),
    "malformed-body": ProblemType(400, "The body does not parse", StoreRequestError),
    "route-not-found": ProblemType(404, "No such route", StoreNotFoundError),
    "method-not-allowed": ProblemType(405, "The route does not take this method", StoreRequestError),
    "not-acceptable": ProblemType(406, "No offered form satisfies Accept", StoreRequestError),
    "request-timeout": ProblemType(408, "The request took too long to arrive", StoreNotAvailableError),
    "unsupported-media-type": ProblemType(415, "The route does not take this media type", StoreRequestError),
    # The request can be read but is wrong.
    "invalid-namespace": ProblemType(422, "Not a namespace name", StoreRequestError),
    "invalid-key": ProblemType(422, "Not a key", StoreRequestError),
    "invalid-parameter": ProblemType(422, "A query parameter or header is wrong", StoreRequestError),
    "unknown-parameter": ProblemType(422, "The route has no such query parameter", StoreRequestError),
    "invalid-body": ProblemType(422, "The body parses but does not say what the route needs", StoreRequestError),
    "invalid-value": ProblemType(422, "The value is not what its encoding says", StoreRequestError),
    "sealed-only": ProblemType(422, "The namespace takes only sealed values", StoreRequestError),
    "idempotency-conflict": ProblemType(422, "The id was used for another write", StoreRequestError),
    "batch-not-atomic": ProblemType(422, "The backend cannot change these keys in one step", StoreRequestError),
    # What is asked for is not there, or no longer as expected.
    "namespace-not-found": ProblemType(404, "No such namespace", StoreNotFoundError),
    "key-not-found": ProblemType(404, "No such key", StoreNotFoundError),
    "series-not-found": ProblemType(404, "No such time series", StoreNotFoundError),
    "sequence-not-found": ProblemType(404, "No such event sequence", StoreNotFoundError),
    "token-not-found": ProblemType(404, "No such token", StoreNotFoundError),
    "precondition-failed": ProblemType(412, "The condition does not hold", StoreConflictError),
    "revision-conflict": ProblemType(409, "The sequence is at another revision", StoreConflictError),
    "timestamp-taken": ProblemType(409, "The timestamp already has events", StoreIntegrityError),
    "sealing-mismatch": ProblemType(409, "Either all events of a sequence are sealed, or none", StoreIntegrityError),
    "unfoldable-event": ProblemType(409, "The event cannot be applied", StoreIntegrityError),
    # Limits.
    "body-too-large": ProblemType(413, "The body is larger than the limit", StoreLimitError),
    "value-too-large": ProblemType(413, "The value is larger than the limit", StoreLimitError),
    "batch-too-large": ProblemType(413, "Too many parts in one request", StoreLimitError),
    "uri-too-long": ProblemType(414, "The request target is longer than the limit", StoreLimitError),
    "headers-too-large": ProblemType(431, "The head of the request is larger than the limit", StoreLimitError),
    "nesting-too-deep": ProblemType(422, "JSON is nested deeper than the limit", StoreLimitError),
    "answer-too-large": ProblemType(422, "The answer would be larger than the limit", StoreLimitError),
    # Access.
    "unauthenticated": ProblemType(401, "A valid token is needed", StoreAuthenticationError),
    "access-denied": ProblemType(403, "The token does not reach this", StoreAccessError),
    "rate-limited": ProblemType(429, "Too many requests", StoreLimitError),
    "cross-origin-request": ProblemType(403, "An open store refuses pages of another origin", StoreAccessError),
    "misdirected-request": ProblemType(421, "An open store does not answer to this name", StoreAccessError),
    # The service cannot serve now.
    "internal-error": ProblemType(500, "The service failed", StoreNotAvailableError),
    "backend-unavailable": ProblemType(503, "The storage backend does not answer", StoreNotAvailableError),
    "backend-corrupt": ProblemType(500, "The stored data is damaged", StoreNotAvailableError),
    "tokens-lost": ProblemType(503, "The store is closed and its storage has no tokens", StoreNotAvailableError),
    "overloaded": ProblemType(503, "The service has too much to do", StoreNotAvailableError),
    "deadline-exceeded": ProblemType(504, "The request took longer than it may", StoreNotAvailableError),
    "shutting-down": ProblemType(503, "The service is stopping", StoreNotAvailableError),
    "storage-full": ProblemType(507, "The storage has no room", StoreNotAvailableError),
}

# A traceback says `rstore.StoreError`, which is the public place of the exceptions.
for _name in filter(lambda name: name.endswith("Error"), __all__):
    globals()[_name].__module__ = "rstore"
