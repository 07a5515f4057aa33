"""How a command of ``rstored`` reports a failure."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer


def fail(reason: str) -> NoReturn:
    """End the command with one line that says why."""
    print(f"rstored: {reason}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(1)
