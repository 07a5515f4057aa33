"""The writes of an update, while they are gathered."""

from __future__ import annotations

from typing import NamedTuple

from rstored.backends.abc import Place
from rstored.backends.redis.calls import Argument
from rstored.backends.redis.layout import Bucket, Owner


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
