"""The store that a command works on, made from the options that stand before it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, Any

import typer

from rstore.cli.exact import ExactStore
from rstore.core.command import Failure
from rstore.store.bare import open_unasked


def store_of(context: typer.Context, *, write: bool = False, **changed: Any) -> ExactStore:
    """A store that is not open yet. To open one to ``write`` creates its namespace."""
    return ExactStore(**{**context.obj, **changed}, frozen=not write)


@contextlib.contextmanager
def connected(context: typer.Context, *, write: bool = False) -> Iterator[ExactStore]:
    """An open store whose namespace need not exist. It does not create the namespace."""
    with contextlib.closing(store_of(context, write=write)) as store:
        open_unasked(store)
        yield store


def standard_input() -> IO[bytes]:
    """Standard input, as bytes."""
    if sys.stdin is None:
        raise Failure("standard input is closed")
    return sys.stdin.buffer


def read_input() -> bytes:
    """All of standard input."""
    try:
        return standard_input().read()
    except OSError as error:
        raise Failure(f"cannot read standard input: {error.strerror}") from None
