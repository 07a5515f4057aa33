"""Every command of ``rstore``, found in the program itself."""

from __future__ import annotations

import typer.main

from rstore.cli.program import cli

PROGRAM = typer.main.get_command(cli)


def leaves(group=PROGRAM, path=()):
    """Every command, by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(leaves())


def required(command) -> list[str]:
    """Values for the arguments and options that a command cannot do without."""
    words = []
    for parameter in command.params:
        if parameter.required:
            is_option = parameter.opts[0].startswith("-")
            words += [parameter.opts[0], "read"] if is_option else ["1"]
    return words
