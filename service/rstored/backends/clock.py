"""The time by which records expire."""

from __future__ import annotations

import time


def unix_ms() -> int:
    """Now by this machine's clock, in POSIX milliseconds."""
    return time.time_ns() // 1_000_000


class Clock:
    """The clock of the storage. It is this machine's clock until the storage has told its time, or if it has no clock.

    Service processes on several machines share a storage. By its clock they agree on what has expired, even if their
    own clocks are wrong. Between two readings, this machine's monotonic clock continues the time. So no request has to
    ask for the time, and setting this machine's clock changes nothing.
    """

    def __init__(self) -> None:
        # How far the storage's clock is ahead of this machine's monotonic clock, in milliseconds.
        self._offset: float | None = None

    def __call__(self) -> int:
        """Now, in POSIX milliseconds."""
        return unix_ms() if self._offset is None else int(time.monotonic() * 1000 + self._offset)

    def follow(self, storage_ms: float, asked: float, answered: float) -> None:
        """Take over the storage's time. The storage read it between the moments ``asked`` and ``answered``.

        Those are seconds of this machine's monotonic clock. If the present offset is possible, it stays, because the
        time would otherwise jump with the delays of the network. The first offset is the least possible one, because an
        expiry that is a moment late does no harm.
        """
        least, most = storage_ms - answered * 1000, storage_ms - asked * 1000
        self._offset = least if self._offset is None else min(max(self._offset, least), most)

    def earlier(self) -> int:
        """Now by this clock or by this machine's clock, whichever is earlier.

        Expired records are deleted by this time. If one clock is ahead, no record is deleted too early.
        """
        return min(self(), unix_ms())

    @property
    def machine_ahead_seconds(self) -> float:
        """How far this machine's clock is ahead of the storage's. Negative if it is behind, 0 if there is only one."""
        return 0.0 if self._offset is None else time.time() - time.monotonic() - self._offset / 1000
