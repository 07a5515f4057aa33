"""Whether and when a call is sent again, and what its error says about the outcome."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2

from rstore.calls import Call, TryAgain
from rstore.core.errors import PROBLEMS, StoreError, StoreNotAvailableError, StoreProtocolError, StoreRequestError

_BACKOFF_SECONDS: Final = 0.05
_PAUSE_SECONDS_MAX: Final = 5.0
# The service answers so before it looks whether an earlier attempt was carried out.
_UNHEARD_STATUSES: Final = frozenset({401, 403, 408, 429})
_OPEN_CODES: Final = frozenset({"backend-unavailable", "backend-corrupt", "internal-error", "deadline-exceeded"})
# The jitter keeps clients apart from each other, and also the forks of one process.
_jitter: Final = random.SystemRandom()


class Attempts:
    """Counts how often a call was sent, and decides whether and when it is sent again.

    No attempt begins later than ``seconds_max`` after the first, and there are at most ``retries`` more. The pauses
    between them double, and vary at random. A call that is not ``repeatable`` is sent again only if no attempt can have
    been carried out.
    """

    __slots__ = ("_end", "_number", "_repeatable", "_retries", "_unknown", "_writes")

    def __init__(self, call: Call[Any], retries: int, seconds_max: float) -> None:
        self._repeatable = call.repeatable
        self._writes = not call.repeatable or any(name == b"idempotency-key" for name, _ in call.headers)
        self._number = 1
        self._retries = retries
        self._end = time.monotonic() + seconds_max
        self._unknown = False

    def pause_seconds(self, failure: TryAgain) -> float:
        """How long to wait before the next attempt. Raises the failure's error if there is none."""
        pause: float = min(_BACKOFF_SECONDS * 2.0 ** (self._number - 1), _PAUSE_SECONDS_MAX) * _jitter.uniform(0.5, 1.0)
        if failure.after_seconds is not None:
            pause = max(pause, failure.after_seconds)
        unknown = not failure.unsent and _leaves_open(failure.error)
        self._unknown |= unknown
        ended = self._number > self._retries or time.monotonic() + pause > self._end
        if ended or (unknown and not self._repeatable):
            failure.error.outcome_unknown = self._writes and self._unknown
            raise failure.error from failure.__cause__
        self._number += 1
        return pause

    def conclude(self, error: StoreError) -> StoreError:
        """The error that ends the call without another attempt. Its ``outcome_unknown`` is set."""
        refused = error.status is not None and 400 <= error.status < 500 and error.status not in _UNHEARD_STATUSES
        # A repeat gets the answer of the first attempt. So if it is refused, no attempt before it has written.
        error.outcome_unknown = self._writes and (_leaves_open(error) or (self._unknown and not refused))
        return error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the HTTP library's exceptions into :class:`TryAgain` or :class:`StoreError`: here and nowhere else."""
    try:
        yield
    except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
        raise StoreRequestError(f"the request cannot be sent: {error}", code="malformed-request") from error
    except httpx2.TimeoutException as error:
        unsent = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
        raise TryAgain(
            StoreNotAvailableError(f"the service did not answer in time ({type(error).__name__})"), unsent=unsent
        ) from error
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        if "WRONG_VERSION_NUMBER" in reason or "wrong version number" in reason:
            reason += "; does it speak plain http://, without TLS?"
        elif isinstance(error, httpx2.RemoteProtocolError) and "disconnected without" in reason:
            reason += "; if it serves TLS, its URL begins with https://, and it may need a client certificate"
        unsent = isinstance(error, httpx2.ConnectError)
        raise TryAgain(StoreNotAvailableError(f"the service does not answer: {reason}"), unsent=unsent) from error
    except httpx2.HTTPError as error:
        raise StoreError(f"the request failed: {error}") from error


def _leaves_open(error: StoreError) -> bool:
    """Whether this error alone leaves open whether a write that was sent has been carried out."""
    if error.code in PROBLEMS and PROBLEMS[error.code].status == error.status:
        return error.code in _OPEN_CODES
    if error.status is None or isinstance(error, StoreProtocolError):
        return isinstance(error, StoreNotAvailableError | StoreProtocolError)
    return error.status >= 500
