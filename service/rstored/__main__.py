"""The entry of the command ``rstored`` and of ``python -m rstored``."""

from __future__ import annotations

from typing import NoReturn

from rstore.core.command import Program, run, typer_program


def main() -> NoReturn:
    """Run the command."""
    run("rstored", _load, extra="service")


def _load() -> Program:
    from rstored.cli.main import cli

    return typer_program("rstored", cli)


if __name__ == "__main__":
    main()
