"""The files of a SQLite database: made for their owner alone, and watched for being replaced."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from rstored.backends.abc import UnfitStorage
from rstored.backends.sqlite.failures import FAILURES
from rstored.problems import Problem

__all__ = ["Files", "check_path", "create", "hide_from_others", "identity"]

logger = logging.getLogger("rstored.sqlite")

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 512
_PRIVATE: Final = stat.S_IRUSR | stat.S_IWUSR


def check_path(path: Path) -> None:
    """Refuse a missing folder, and a short file that SQLite did not write, which SQLite would take for an empty one."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        folder_is_there = path.parent.is_dir()
    except OSError as error:
        raise Problem("backend-unavailable", f"the file {str(path)!r} cannot be opened: {error.strerror}") from None
    if not folder_is_there:
        hint = "" if path.is_absolute() else "; an absolute path takes four slashes: sqlite:////…"
        raise Problem("backend-unavailable", f"there is no folder {str(path.parent)!r}: create it{hint}")
    # A longer one is left to SQLite: if this process has it open, to open and close it here would drop the locks on it.
    if not 0 < size < _HEADER_BYTES:
        return
    try:
        begins = path.read_bytes()[: len(_MAGIC)]
    except OSError:
        # SQLite fails on it too, and the reason that it gives is translated like any other.
        return
    if begins != _MAGIC:
        code, detail = FAILURES[sqlite3.SQLITE_NOTADB]
        raise Problem(code, detail.format(file=f"the file {str(path)!r}"))


def create(path: Path) -> None:
    """Make the file if it is not there, for its owner alone. SQLite would make it for whomever the umask lets in."""
    try:
        # Opened only if it is new: to close a file drops the locks that this process has on it.
        file = os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    except OSError:
        # It is there, or cannot be made; then SQLite fails too, and the reason that it gives is translated.
        return
    os.fchmod(file, _PRIVATE)
    os.close(file)


def hide_from_others(path: Path) -> None:
    """Take from a store that is there what accounts may do that neither own it nor are in its group.

    An earlier release made it for whomever the umask let in. What the group may do stays: somebody may have set it. New
    files beside it get its mode from SQLite.
    """
    path = Path(os.path.realpath(path))
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & stat.S_IRWXO:
                file.chmod(mode & ~stat.S_IRWXO)
        except FileNotFoundError:
            pass
        except OSError:
            logger.warning("every account of this machine may open a file of the store", extra={"file": str(file)})


class Files:
    """The files of an open database: the file itself, its log and the log's index.

    SQLite keeps them open and goes on with them when they were deleted, renamed, replaced or emptied: what is written
    then is lost with the process, or with the next one that opens what is there instead. So they are compared with what
    is under their names. ``gone`` says whether they differed when they were compared last.
    """

    def __init__(self, path: Path) -> None:
        self.gone = False
        self._path = path
        # SQLite follows links, and names the others after what it finds.
        real = os.path.realpath(path)
        self._names = (str(path), f"{real}-wal", f"{real}-shm")
        try:
            self._found = self._look()
        except OSError as error:
            raise Problem("backend-unavailable", f"the file {str(path)!r} was deleted while it was opened") from error

    def check(self) -> None:
        """Return if all of them are where they were; otherwise raise :class:`UnfitStorage`."""
        try:
            self.gone = self._look() != self._found
        except OSError:
            self.gone = True
        if self.gone:
            raise UnfitStorage(
                "the database file, or its -wal or -shm, was deleted, moved, replaced or emptied while in use: put it "
                "back, or restart the service to use what is there now"
            )

    def check_mode(self) -> None:
        """Return if the file may be written; otherwise raise :class:`UnfitStorage`."""
        if not os.access(self._path, os.W_OK):
            raise UnfitStorage("the database file was made read-only while in use: make it writable again")

    def _look(self) -> tuple[list[tuple[int, int]], bool]:
        """Which files are there, and whether the first is empty, as it is while a copy is written over it."""
        found = [os.stat(name) for name in self._names]
        return list(map(identity, found)), found[0].st_size == 0


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from any other one that has been, or will be, under its name."""
    return status.st_dev, status.st_ino
