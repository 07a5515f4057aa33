"""The writes of updates, while they are gathered and sent."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from rstored.backends.abc import Head, Place
from rstored.backends.redis.calls import Argument
from rstored.backends.redis.layout import Bucket, Owner

_UPDATES_PER_CALL: Final = 128
_CALL_BYTES_MAX: Final = 16 * 2**20


class Section(NamedTuple):
    """The writes of one update. In a cluster, its changes of namespaces come first, and step by step."""

    position: int
    bucket: Bucket
    arguments: list[Argument]
    size: int
    changes: NamespaceChanges | None = None


class NamespaceChanges:
    """The changes of namespaces by an update: in the registry, and in the buckets before and after that."""

    def __init__(self) -> None:
        self.before: list[tuple[Bucket, tuple[Argument, ...]]] = []
        self.registry: list[Argument] = []
        self.after: list[tuple[Bucket, tuple[Argument, ...]]] = []
        self.checks: dict[bytes, bytes] = {}
        self.made: list[Owner] = []
        self.changed: list[str] = []


class Writing:
    """The writes of one update to records, while they are gathered."""

    def __init__(self, version: bytes) -> None:
        self.version = version
        self.arguments: list[Argument] = []
        self.claims: list[Argument] = []
        self.size = 0
        # Records whose rows are written. They get the new version too.
        self.touched: dict[Place, None] = {}
        # The rows that got a `by`, and the lanes from which rows were deleted.
        self.claimed: dict[tuple[Place, int, bytes], bytes] = {}
        self.freed: set[tuple[Place, int]] = set()

    def claim(self, place: Place, lane: int, data_key: bytes, by: bytes, sort: bytes) -> None:
        """A row takes a ``by``, which must be free. It is not checked if the update deleted from the lane before."""
        if self.claimed.setdefault((place, lane, by), sort) != sort and (place, lane) not in self.freed:
            raise AssertionError("two rows of a lane have the same by")
        if (place, lane) not in self.freed:
            self.claims += (data_key, by, sort)

    def forget(self, place: Place) -> None:
        """The record and everything in it is deleted."""
        self.touched.pop(place, None)
        for place_, lane, by in [at for at in self.claimed if at[0] == place]:
            del self.claimed[place_, lane, by]
            self.freed.add((place_, lane))


def expires(head: Head | None) -> bool:
    return head is not None and head.expires_ms is not None


def grouped(sections: list[Section]) -> list[list[Section]]:
    """The sections by slot, in order, in groups of bounded size. Each group becomes one call."""
    groups: list[list[Section]] = []
    latest: dict[int, tuple[int, int]] = {}
    for section in sections:
        number, size = latest.get(section.bucket.slot, (-1, _CALL_BYTES_MAX))
        if size >= _CALL_BYTES_MAX or len(groups[number]) >= _UPDATES_PER_CALL:
            number, size = len(groups), 0
            groups.append([])
        groups[number].append(section)
        latest[section.bucket.slot] = number, size + section.size
    return groups


def statuses(groups: list[list[Section]], replies: list[Any]) -> list[Any]:
    """The result of each section: 1, 0 or an exception, in the order of the groups."""
    statuses: list[Any] = []
    for group, reply in zip(groups, replies, strict=True):
        if isinstance(reply, Exception):
            statuses += [reply] * len(group)
        else:
            statuses += [ResponseError(status.decode()) if isinstance(status, bytes) else status for status in reply]
    return statuses
