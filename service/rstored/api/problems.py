"""Problems as answers. This is the only place that makes the documents of RFC 9457."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rstore.core.errors import PROBLEMS
from rstore.core.media_types import PROBLEM_MEDIA_TYPE
from rstored.api.replies import Header, Reply, content_type
from rstored.problems import Problem

_HEADERS: Final[tuple[Header, ...]] = (content_type(PROBLEM_MEDIA_TYPE),)
# A cause of 503 is often over in a moment. If it is not, asking more often would not help.
_RETRY_AFTER_SECONDS: Final = 1

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "A failure (RFC 9457). Some codes have further members.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "a name for the code, not an address"},
        "title": {"type": "string", "description": "the same for every problem with this code"},
        "status": {"type": "integer", "description": "the HTTP status"},
        "detail": {"type": "string", "description": "what is wrong this time and what to do"},
        "code": {"type": "string", "description": "stable: decide by this", "enum": sorted(PROBLEMS)},
        "request_id": {"type": "string", "description": "finds the request in the service's log"},
        "pointer": {"type": "string", "description": "which part of the body, as a JSON pointer"},
        "parameter": {"type": "string", "description": "which query parameter or header"},
        "limit": {"type": "integer", "description": "the limit that was passed"},
        "retry_after_seconds": {"type": "integer", "description": "how long to wait, as in Retry-After"},
    },
}


def _problem_type(code: str) -> str:
    """The ``type`` member of a problem: a URI that is only a name."""
    return f"urn:rstore:problem:{code}"


def _problem_document(problem: Problem, request_id: str) -> dict[str, Any]:
    """The members of the problem document."""
    row = problem.type
    return {
        "type": _problem_type(problem.code),
        "title": row.title,
        "status": row.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
        **problem.members,
    }


def problem_example(code: str) -> dict[str, Any]:
    """A problem document with this code, as an example for the OpenAPI document."""
    return _problem_document(Problem(code, f"{PROBLEMS[code].title}."), "6f3a9c2e51d0-1")


def problem_reply(problem: Problem, request_id: str, *headers: Header) -> Reply:
    """The answer for a problem. It is JSON whatever Accept says, so that every client can read it."""
    body = msgspec.json.encode(_problem_document(problem, request_id))
    status = problem.type.status
    if status in (429, 503):
        seconds = problem.members.get("retry_after_seconds", _RETRY_AFTER_SECONDS)
        headers = (*headers, (b"retry-after", b"%d" % seconds))
    return Reply(status, (*_HEADERS, *headers), body)
