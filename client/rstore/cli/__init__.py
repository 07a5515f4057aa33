"""The ``rstore`` command, which talks to a service through :class:`~rstore.store.Store`.

Results are JSON on standard output, one to a line. A failure is one line on standard error; see
:mod:`rstore.core.command`. This room imports from every other room.
"""

from __future__ import annotations

from typing import NoReturn

from rstore.core.command import Failure, Program, run, typer_program


def main() -> NoReturn:
    """Run the command."""
    run("rstore", _load, extra="cli")


def _load() -> Program:
    from rstore.cli.program import cli
    from rstore.core.errors import StoreError

    program = typer_program("rstore", cli)

    def answering_for_stores(arguments: list[str]) -> int:
        try:
            return program(arguments)
        except StoreError as error:
            reason = str(error)
            if error.code == "namespace-not-found":
                reason = f"{reason.partition(';')[0]}; `rstore ns create` makes it, and so does the first write"
            # Whoever wants to repeat the command must know whether it has had an effect.
            outcome = "; it was done" if error.done else "; it may have been done" if error.outcome_unknown else ""
            raise Failure(reason + outcome) from None

    return answering_for_stores
