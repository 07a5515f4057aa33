"""How the updates of a batch are sent: many in one call, before the reads that must see them."""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import ResponseError

from rstored.backends.redis.calls import Call
from rstored.backends.redis.failures import problem_of
from rstored.backends.redis.namespaces import change_namespaces
from rstored.backends.redis.reading import Reading
from rstored.backends.redis.sections import Section
from rstored.backends.redis.store import Store
from rstored.problems import Problem

_UPDATES_PER_CALL: Final = 128
_CALL_BYTES_MAX: Final = 16 * 2**20


class Sending:
    """The sections of a batch on their way, and what became of them.

    ``pending`` are the sections to be sent. ``again`` are the positions of the updates that other processes disturbed,
    and ``failed`` are the problems of updates by position. ``unknown`` is set when an update that failed may still take
    place. Then no later plan may be carried out.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Tags of the buckets of namespaces that could not be made.
        self._unmade: set[bytes] = set()
        self.pending: list[Section] = []
        self.again: set[int] = set()
        self.failed: dict[int, Exception] = {}
        self.unknown = False

    async def send(self, reading: Reading) -> list[Any]:
        """Send the pending sections and then the reads. Returns the replies to the reads."""
        pending, self.pending = self.pending, []
        servers = self._store.servers
        sections: list[Section] = []
        for section in pending:
            if section.changes is not None and servers.cluster:
                groups = _grouped(sections)
                self._settle(groups, await servers.exchange(self._calls(groups)))
                sections = []
                if not await self._change_namespaces(section):
                    # Another process made the namespace. Updates for the one that could not be made start again.
                    self._unmade.update(bucket.tag for owner in section.changes.made for bucket in owner.buckets)
                    continue
            if section.bucket.tag in self._unmade:
                self.again.add(section.position)
            elif section.arguments:
                sections.append(section)
        groups = _grouped(sections)
        calls = self._calls(groups)
        asked = reading.calls()
        if not calls and not asked:
            return []
        replies = await servers.exchange([*calls, *asked])
        self._settle(groups, replies[: len(calls)])
        return replies[len(calls) :]

    def _calls(self, groups: list[list[Section]]) -> list[Call]:
        return [self._store.commit_call(group[0].bucket, (section.arguments for section in group)) for group in groups]

    def _settle(self, groups: list[list[Section]], replies: list[Any]) -> None:
        """Take over what became of the updates."""
        sections = [section for group in groups for section in group]
        for section, status in zip(sections, _statuses(groups, replies), strict=True):
            if status == 1:
                if section.changes is not None:
                    for owner in section.changes.made:
                        self._store.know(owner)
                    for name in section.changes.changed:
                        self._store.forget(name)
            elif status == 0:
                self.again.add(section.position)
            else:
                self.failed[section.position] = problem_of(status)
                self.unknown = True

    async def _change_namespaces(self, section: Section) -> bool:
        """Make the changes of an update to namespaces of a cluster. True if they took place."""
        assert section.changes is not None
        try:
            status = await change_namespaces(self._store, section.changes)
        except Problem as problem:
            self.failed[section.position] = problem
            return False
        if status != 1:
            self._settle([[section]], [[status]])
        return bool(status == 1)


def _grouped(sections: list[Section]) -> list[list[Section]]:
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


def _statuses(groups: list[list[Section]], replies: list[Any]) -> list[Any]:
    """The result of each section: 1, 0 or an exception, in the order of the groups."""
    statuses: list[Any] = []
    for group, reply in zip(groups, replies, strict=True):
        if isinstance(reply, Exception):
            statuses += [reply] * len(group)
        else:
            statuses += [ResponseError(status.decode()) if isinstance(status, bytes) else status for status in reply]
    return statuses
