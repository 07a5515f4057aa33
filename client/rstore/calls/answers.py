"""Reading answers: what each may be, and the error for one that is something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from rstore.calls.call import RETRIED_STATUSES, Answer, Head, T, TryAgain
from rstore.core.decoding import decoding_failure
from rstore.core.errors import (
    PROBLEMS,
    StoreAccessError,
    StoreAuthenticationError,
    StoreConflictError,
    StoreError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreNotFoundError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.media_types import JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE
from rstore.core.memory import json_memory

_MESSAGE_LENGTH_MAX: Final = 500
_PROBLEM_BYTES_MAX: Final = 2**16
_RETRY_AFTER: Final = re.compile(r"[0-9]{1,6}\Z")
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,200}\Z")
_STATUS_ERRORS: Final[dict[int, type[StoreError]]] = {
    401: StoreAuthenticationError,
    403: StoreAccessError,
    404: StoreNotFoundError,
    408: StoreNotAvailableError,
    409: StoreConflictError,
    412: StoreConflictError,
    413: StoreLimitError,
    414: StoreLimitError,
    429: StoreLimitError,
}


class _ProblemShape(msgspec.Struct):
    code: str | None = None
    title: str = ""
    detail: str = ""
    request_id: str | None = None


class _ObjectShape(msgspec.Struct, gc=False):
    """An object of which nothing is kept."""


class _ArraysShape(msgspec.Struct):
    """The arrays of an answer, decoded as far as it takes to count their objects."""

    items: list[_ObjectShape] = []
    events: list[_ObjectShape] = []
    get: list[_ObjectShape] = []
    set: list[_ObjectShape] = []


_PROBLEM: Final = msgspec.json.Decoder(_ProblemShape)
_ARRAYS: Final = msgspec.json.Decoder(_ArraysShape)


def json_body(answer: Answer, decoder: msgspec.json.Decoder[T], *statuses: int, **most: int) -> T:
    """The body of an answer that must be JSON of a given shape with one of these statuses.

    ``most`` says how many objects an array of that name may have. An answer that has more, or would take too much
    memory, is not decoded. Afterwards the memory of decoding is free again, and the caller counts what it keeps.
    """
    head, body, spend = answer
    if head.status not in statuses:
        raise refusal(answer)
    if bare_media_type(head) != JSON_MEDIA_TYPE:
        malformed("it is not JSON", head)
    size = json_memory(body)
    spend(size)
    try:
        if most and body.count(b"{") > 1 + sum(most.values()):
            arrays = _ARRAYS.decode(body)
            if any(len(getattr(arrays, name)) > number for name, number in most.items()):
                malformed("there are more items than were asked for", head)
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        malformed(_printable(decoding_failure(error, body, "it")), head)
    finally:
        spend(-size)


def no_body(*statuses: int) -> Callable[[Answer], None]:
    """What decodes an answer that is its status, which must be one of these."""

    def decode(answer: Answer) -> None:
        if answer.head.status not in statuses:
            raise refusal(answer)

    return decode


def bare_media_type(head: Head) -> str:
    """The media type of an answer, in lower case and without parameters; empty if it has none."""
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def problem_code(answer: Answer, status: int) -> str | None:
    """The problem code of an answer with this status; None if it has another status or is not a problem document."""
    if answer.head.status != status or not _is_problem(answer):
        return None
    try:
        return _PROBLEM.decode(answer.body).code
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def refusal(answer: Answer) -> Exception:
    """The exception for an answer that is none of those the call asks for."""
    head = answer.head
    if not 400 <= head.status <= 599:
        location = " (redirects are not followed)" if 300 <= head.status <= 399 else ""
        return StoreProtocolError(f"the server answered with status {head.status}{location}", status=head.status)
    problem = _ProblemShape()
    document: dict[str, Any] = {}
    if _is_problem(answer):
        try:
            problem = _PROBLEM.decode(answer.body)
            document = msgspec.json.decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            problem = _ProblemShape()
    known = PROBLEMS.get(problem.code or "")
    if known is not None and known.status == head.status:
        exception, title = known.exception, known.title
    else:
        exception = _STATUS_ERRORS.get(head.status, StoreNotAvailableError if head.status >= 500 else StoreRequestError)
        title = problem.title or f"the server answered with status {head.status}"
    request_id = problem.request_id or head.headers.get("x-request-id")
    if request_id is not None and not _REQUEST_ID.match(request_id):
        request_id = None
    error = exception(
        _printable(problem.detail or title),
        code=problem.code,
        status=head.status,
        request_id=request_id,
        problem=document,
    )
    if head.status not in RETRIED_STATUSES:
        return error
    after = head.headers.get("retry-after", "").strip()
    return TryAgain(error, float(after) if _RETRY_AFTER.match(after) else None)


def raise_refusal(answer: Answer) -> NoReturn:
    """Decode an answer that is none of those the call asks for."""
    raise refusal(answer)


def malformed(what: str, head: Head | None = None) -> NoReturn:
    """Raise the error for an answer that is not what the call asks for; ``what`` says how it differs."""
    status = head.status if head else None
    raise StoreProtocolError(f"the server's answer is not one of an rstore service: {what}", status=status)


def _is_problem(answer: Answer) -> bool:
    """Whether it is a problem document. An answer that is longer than one may be is none, whatever its media type."""
    return bare_media_type(answer.head) == PROBLEM_MEDIA_TYPE and len(answer.body) <= _PROBLEM_BYTES_MAX


def _printable(text: str) -> str:
    """Text of the server that may stand in a message: bounded, and without control characters."""
    return "".join(character if character.isprintable() else " " for character in text[:_MESSAGE_LENGTH_MAX])
