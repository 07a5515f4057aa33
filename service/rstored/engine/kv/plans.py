"""Key/value pairs: what stands inside the plans of writes."""

from __future__ import annotations

from collections.abc import Mapping

from rstored.backends.abc import DeleteRecord, Head, Place, PutHead, Write
from rstored.engine.kv.heads import etag_of, packed_etag, unexpired
from rstored.engine.model import ANY, KEEP, BatchSet, Condition, PutResult
from rstored.problems import Problem


def put_writes(
    heads: Mapping[Place, Head | None], place: Place, part: BatchSet, new: Head, now: int
) -> tuple[list[Write], PutResult]:
    """What a put writes, and its result."""
    current = unexpired(heads[place], now)
    if part.condition is not ANY and not _holds(part.condition, current):
        raise _precondition_failed(current)
    if part.ttl_seconds is KEEP and current is not None and current.expires_ms is not None:
        new = new._replace(expires_ms=current.expires_ms)
    return [PutHead(place, new)], PutResult(packed_etag(new.meta), current is None)


def delete_writes(
    heads: Mapping[Place, Head | None], place: Place, condition: Condition, now: int
) -> tuple[list[Write], bool]:
    """What a delete writes, and whether the entry was there."""
    current = unexpired(heads[place], now)
    if not _holds(condition, current):
        raise _precondition_failed(current)
    return [DeleteRecord(place)], current is not None


def in_part(problem: Problem, position: int, set_count: int) -> Problem:
    """The problem, with the JSON pointer to the part of the batch. The sets come before the deletes."""
    pointer = f"/set/{position}" if position < set_count else f"/delete/{position - set_count}"
    return Problem(problem.code, problem.detail, pointer=pointer, **problem.members)


def _holds(condition: Condition, current: Head | None) -> bool:
    match, none_match = condition
    if match is not None and (current is None or not _named(match, current)):
        return False
    return none_match is None or current is None or not _named(none_match, current)


def _named(etags: tuple[str, ...], current: Head) -> bool:
    return "*" in etags or etag_of(current) in etags


def _precondition_failed(current: Head | None) -> Problem:
    reason = "the key does not exist" if current is None else "the key exists, and the condition excludes its ETag"
    return Problem("precondition-failed", f"{reason}: read the key again and decide again")
