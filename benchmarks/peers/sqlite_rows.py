"""SQLite in the benchmark's own process, as durable as rstored: what one would write without a service."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

Points = list[tuple[int, float]]


def _database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def open_table(path: Path) -> sqlite3.Connection:
    """An empty table with a row for each point."""
    connection = _database(path)
    connection.execute("CREATE TABLE point (t INTEGER PRIMARY KEY, value REAL NOT NULL)")
    return connection


def insert_rows(connection: sqlite3.Connection, points: Points) -> None:
    """Insert or replace all in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO point VALUES (?, ?) ON CONFLICT (t) DO UPDATE SET value = excluded.value", points
    )
    connection.execute("COMMIT")


def select_rows(connection: sqlite3.Connection) -> Points:
    """All, in the order of time."""
    return connection.execute("SELECT t, value FROM point ORDER BY t").fetchall()


def commits_per_second(folder: Path, keys: list[str], seconds: float) -> float:
    """How many 100-byte values one connection commits, each in a transaction of its own."""
    connection = _database(folder / "commits.db")
    connection.execute("CREATE TABLE IF NOT EXISTS pair (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
    statement = "INSERT INTO pair VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    count = 0
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        connection.execute(statement, (keys[count % len(keys)], random.randbytes(100)))
        count += 1
    elapsed = time.perf_counter() - started
    connection.close()
    return count / elapsed
