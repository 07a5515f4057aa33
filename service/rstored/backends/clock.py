"""The time by which records expire."""

from __future__ import annotations

import time

__all__ = ["Clock", "unix_ms"]


def unix_ms() -> int:
    """Now by this machine's clock, in POSIX milliseconds."""
    return time.time_ns() // 1_000_000


class Clock:
    """The storage's clock, as far as it has told its time; until then, or if it has none, this machine's.

    Service processes on several machines share a storage, so by its clock they agree on what has expired, however wrong
    their own are. Between two readings of it this machine's monotonic clock goes on: no request asks for the time, and
    setting this machine's clock changes nothing.
    """

    def __init__(self) -> None:
        # What the storage's clock shows more than this machine's monotonic one, in milliseconds.
        self._offset: float | None = None

    def __call__(self) -> int:
        """Now, in POSIX milliseconds."""
        return unix_ms() if self._offset is None else int(time.monotonic() * 1000 + self._offset)

    def follow(self, storage_ms: float, asked: float, answered: float) -> None:
        """Take over the storage's time, which it read between two times of this machine's monotonic clock, in seconds.

        What is known stays if that does not contradict it: otherwise the time would jump about with the network's. It
        begins with the earliest that is possible, as expiring a moment late does no harm.
        """
        least, most = storage_ms - answered * 1000, storage_ms - asked * 1000
        self._offset = least if self._offset is None else min(max(self._offset, least), most)

    def earlier(self) -> int:
        """Now by this clock or by this machine's, whichever is earlier.

        What has expired is deleted by this time. If either clock is ahead, nothing is deleted that is still to live.
        """
        return min(self(), unix_ms())

    @property
    def machine_ahead_seconds(self) -> float:
        """How far this machine's clock is ahead of the storage's; negative if it is behind, 0 if there is one clock."""
        return 0.0 if self._offset is None else time.time() - time.monotonic() - self._offset / 1000
