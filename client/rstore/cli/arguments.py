"""How a command reads its arguments. It guesses nothing, and refuses an option that is given twice."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])
_NEGATIVE: Final = re.compile(r"-[0-9.]")
_UsageError: Final[Any] = typer.BadParameter.__base__
"""The base class has no public name."""

_MARK: Final = "\0"
"""No argument of a process can hold NUL."""


class _Parsing:
    """Reads the arguments of a command more strictly than its base class does.

    An argument that begins like a negative number is a value and not an option. An option may be given once. Text is
    UTF-8.
    """

    params: list[Any]

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)  # type: ignore[misc]
        parse = parser.parse_args

        def parse_args(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, rest, order = parse([_MARK + arg if _NEGATIVE.match(arg) else arg for arg in args])
            for parameter, count in Counter(order).items():
                if count > 1 and not parameter.multiple:
                    raise typer.BadParameter("it is given twice", ctx=ctx, param=parameter)
            return {name: _without_mark(value) for name, value in values.items()}, _without_mark(rest), order

        parser.parse_args = parse_args
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        for parameter in self.params:
            given = ctx.params.get(parameter.name)
            for text in given if isinstance(given, list | tuple) else [given]:
                if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                    raise typer.BadParameter("it is not valid UTF-8", ctx=ctx, param=parameter)
        return rest


class _Command(_Parsing, TyperCommand):
    """A command."""


class _Group(_Parsing, TyperGroup):
    """A group of commands. For an unknown command it suggests one whose name begins alike."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            alike = [name for name in self.commands if name[:1] == args[0][:1]]
            for name in difflib.get_close_matches(args[0], alike, n=1):
                error.message = f"{error.message.rstrip('.')} (did you mean {name!r}?)"
            raise


class Commands(typer.Typer):
    """Commands of one kind."""

    def __init__(self, about: str) -> None:
        super().__init__(
            cls=_Group,
            help=about,
            no_args_is_help=True,
            add_completion=False,
            suggest_commands=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # In markup, [key, value] in a help text would vanish.
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_FunctionT], _FunctionT]:
        """Make a function a command."""
        return super().command(name, cls=_Command, **settings)


def _without_mark(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    return type(value)(map(_without_mark, value)) if isinstance(value, list | tuple) else value
