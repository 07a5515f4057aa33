"""How a command line begins and ends, for ``rstore`` and ``rstored`` alike.

A failure is one line on standard error and an exit code that is not 0: 1 if the work could not be done, 2 if the
command is written wrongly. Ctrl-C and a reader that closed the pipe end the process by their signal, as they end
every program that does not handle them, so a shell's loop or pipeline sees what happened.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    import typer

Program: TypeAlias = Callable[[list[str]], int]
"""Carries out the arguments of a command, and returns the exit code."""


class Failure(Exception):
    """A command failed. The message is the line that says why."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.code = code


def run(name: str, load: Callable[[], Program], *, extra: str) -> NoReturn:
    """Carry out the arguments of this process, and exit.

    ``load`` imports the program. Imports take much of the time of a short command, so Ctrl-C may arrive during them.
    ``extra`` is the extra of the distribution that installs what they need.
    """
    try:
        if sys.stdout is None:
            raise Failure("standard output is closed")
        code = _loaded(load, extra)(sys.argv[1:])
        sys.stdout.flush()
    except Failure as failure:
        code = failure.code
        _complain(name, str(failure))
    except KeyboardInterrupt as interrupt:
        _complain(name, str(interrupt) or "interrupted")
        _die_of(signal.SIGINT)
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)
    except UnicodeEncodeError as error:
        code = 1
        character = f"U+{ord(error.object[error.start]):04X}"
        reason = f"the output has {character}, which the terminal's encoding {error.encoding} lacks; use a UTF-8 locale"
        _complain(name, reason)
    except OSError as error:
        # Errors of input and of services are translated before, so this is an error of the output.
        code = 1
        _complain(name, f"cannot write the output: {error.strerror or error}")
    _abandon_unwritten_output()
    sys.exit(code)


@functools.cache
def typer_program(name: str, commands: typer.Typer) -> Program:
    """The program of these commands, made once. It raises :class:`Failure` for a command that is written wrongly."""
    import typer

    command = typer.main.get_command(commands)
    # These errors have no public names.
    usage_error: Any = typer.BadParameter.__base__

    def program(arguments: list[str]) -> int:
        try:
            # Not `main` of the command, which would handle some errors of output itself.
            with command.make_context(name, arguments) as context:
                command.invoke(context)
        except typer.Exit as end:
            return end.exit_code
        except typer.Abort:
            raise Failure("not confirmed; nothing was done") from None
        except usage_error as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                return 2
            path = name if error.ctx is None else error.ctx.command_path
            message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
            stop = "" if message.endswith("?") else "."
            raise Failure(f"{message}{stop} Try '{path} --help'.", 2) from None
        return 0

    return program


def _loaded(load: Callable[[], Program], extra: str) -> Program:
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("rstore", "rstored"):
            raise
        reason = f"the package {error.name} is missing; install rstore with its extra: rstore[{extra}]"
        raise Failure(reason) from None


def _complain(name: str, reason: str) -> None:
    # If standard error fails too, only the exit code is left.
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{name}: {_on_one_line(reason)}\n")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.write(text)
            stream.flush()


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _abandon_unwritten_output() -> None:
    """Drop the output that cannot be written. Otherwise Python would try again at its exit, and complain once more."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _die_of(number: signal.Signals) -> NoReturn:
    _abandon_unwritten_output()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    sys.exit(128 + number)  # The signal is blocked.
