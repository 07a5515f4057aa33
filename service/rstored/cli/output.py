"""How a command of ``rstored`` says what went wrong."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

__all__ = ["complain", "fail"]


def complain(reason: str) -> None:
    print(f"rstored: {reason}", file=sys.stderr)  # noqa: T201


def fail(reason: str) -> NoReturn:
    """End with one line that says why."""
    complain(reason)
    raise typer.Exit(1)
