"""SQLite: one file, read on the event loop, written by one thread."""

from rstored.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
