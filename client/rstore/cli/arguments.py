"""What an argument may be. Strict, as the service is: nothing is guessed at, and nothing given twice is lost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from rstore.core.durations import InvalidDuration, parse_duration

__all__ = [
    "Commands",
    "EndOption",
    "FreqOption",
    "KeyArgument",
    "KeysArgument",
    "StartOption",
    "duration",
    "filled",
    "integer",
    "seconds",
    "span",
]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_NEGATIVE: Final = re.compile(r"-[0-9.]")
_MARK: Final = "\0"
"""No argument of a process can hold NUL."""


class _Parsing:
    """Reads the arguments of a command more strictly than its base class does.

    What begins like a negative number is a value and no option, an option may be given once, and text is UTF-8.
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


def _without_mark(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    return type(value)(map(_without_mark, value)) if isinstance(value, list | tuple) else value


class _Command(_Parsing, TyperCommand):
    """A command."""


class _Group(_Parsing, TyperGroup):
    """A group of commands."""


class Commands(typer.Typer):
    """Commands of one kind."""

    def __init__(self, about: str) -> None:
        super().__init__(
            cls=_Group,
            help=about,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # In markup a [key, value] in a help text would vanish.
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[FunctionT], FunctionT]:
        """Make a function a command."""
        return super().command(name, cls=_Command, **settings)


# --- kinds of values ---------------------------------------------------------------------------------------

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}\Z", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?\Z", re.ASCII)


def integer(text: str) -> int:
    """An integer in decimal digits, as the parameters of the service's routes are."""
    if not _INTEGER.match(text):
        raise typer.BadParameter("write an integer in decimal digits")
    return int(text)


def filled(text: str) -> str:
    """Text that is not empty. Otherwise ``--namespace "$NAME"`` would mean the default where NAME is not set."""
    if not text:
        raise typer.BadParameter("it is empty")
    return text


def seconds(text: str) -> float:
    """A number of seconds, as the parameter ``ttl`` is."""
    if not _SECONDS.match(text):
        raise typer.BadParameter("write a number of seconds such as 60 or 0.5")
    return float(text)


def duration(text: str) -> int:
    """The seconds of a span of time such as 90d."""
    try:
        return parse_duration(text)
    except InvalidDuration as error:
        raise typer.BadParameter(str(error)) from None


def span(low: int, high: int) -> Callable[[str | int], int]:
    """What reads an integer from ``low`` to ``high``."""

    def parse(text: str | int) -> int:
        # A default comes as the number that it is.
        number = text if isinstance(text, int) else integer(text)
        if not low <= number <= high:
            raise typer.BadParameter(f"it is from {low} to {high}")
        return number

    return parse


KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key.")]
KeysArgument = Annotated[list[str], typer.Argument(metavar="KEY", help="The keys.")]
StartOption = Annotated[
    int | None, typer.Option(parser=integer, metavar="T", help="The first timestamp, inclusive.", show_default=False)
]
EndOption = Annotated[
    int | None, typer.Option(parser=integer, metavar="T", help="The last timestamp, inclusive.", show_default=False)
]
FreqOption = Annotated[
    int | None,
    typer.Option(parser=integer, metavar="STEP", help="The least distance of two timestamps.", show_default=False),
]
