"""The files of a SQLite database. Only their owner may open them, and replacing them is noticed."""

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

logger = logging.getLogger("rstored.sqlite")

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 512
_PRIVATE: Final = stat.S_IRUSR | stat.S_IWUSR


def check_path(path: Path) -> None:
    """Refuse a missing folder, and a short file of another program. SQLite would treat that one as empty."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        folder_is_there = path.parent.is_dir()
    except OSError as error:
        raise Problem("backend-unavailable", f"the file {str(path)!r} cannot be opened: {error.strerror}") from None
    if not folder_is_there:
        hint = "" if path.is_absolute() else "; an absolute path takes four slashes: sqlite:////…"
        raise Problem("backend-unavailable", f"there is no folder {str(path.parent)!r}: create it{hint}")
    # SQLite checks a longer file. If this process has it open, closing it here would drop the locks on it.
    if not 0 < size < _HEADER_BYTES:
        return
    try:
        begins = path.read_bytes()[: len(_MAGIC)]
    except OSError:
        # SQLite fails too, and its error is translated like any other.
        return
    if begins != _MAGIC:
        code, detail = FAILURES[sqlite3.SQLITE_NOTADB]
        raise Problem(code, detail.format(file=f"the file {str(path)!r}"))


def create(path: Path) -> None:
    """Make the file if it does not exist, for its owner alone. SQLite would heed only the umask."""
    try:
        # It is opened only if it is new. Closing an old one would drop the locks that this process has on it.
        file = os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    except OSError:
        # It exists, or cannot be made. In that case SQLite fails too, and its error is translated.
        return
    os.fchmod(file, _PRIVATE)
    os.close(file)


def hide_from_others(path: Path) -> None:
    """Take all rights on an existing store from accounts that neither own it nor are in its group.

    An earlier release made the file with the mode that the umask allowed. The rights of the group stay, because
    somebody may have set them. SQLite gives the mode of the file to the new files beside it.
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

    SQLite keeps them open, and goes on using them after they are deleted, renamed, replaced or emptied. Later writes
    are lost when the process ends, or when another process opens the files that are there instead. So these are
    compared with the files under their names. ``gone`` says whether they differed in the last comparison.
    """

    def __init__(self, path: Path) -> None:
        self.gone = False
        self._path = path
        # SQLite follows links, and names the log and its index after the real file.
        real = os.path.realpath(path)
        self._names = (str(path), f"{real}-wal", f"{real}-shm")
        try:
            self._found = self._look()
        except OSError as error:
            raise Problem("backend-unavailable", f"the file {str(path)!r} was deleted while it was opened") from error

    def check(self) -> None:
        """Return if all files are still in their places; otherwise raise :class:`UnfitStorage`."""
        try:
            self.gone = self._look() != self._found
        except OSError:
            self.gone = True
        if self.gone:
            raise UnfitStorage(
                "the database file, or its -wal or -shm, was deleted, moved, replaced or emptied while in use: put it "
                "back, or restart the service to use the files that are there now"
            )

    def check_mode(self) -> None:
        """Return if the file may be written; otherwise raise :class:`UnfitStorage`."""
        if not os.access(self._path, os.W_OK):
            raise UnfitStorage("the database file was made read-only while in use: make it writable again")

    def _look(self) -> tuple[list[tuple[int, int]], bool]:
        """Which files exist, and whether the first is empty, as it is while somebody copies another file over it."""
        found = [os.stat(name) for name in self._names]
        return list(map(identity, found)), found[0].st_size == 0


def identity(status: os.stat_result) -> tuple[int, int]:
    """The identity of a file, by which another file under the same name differs."""
    return status.st_dev, status.st_ino
