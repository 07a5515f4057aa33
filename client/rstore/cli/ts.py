"""Time series: ``rstore ts …``."""

from __future__ import annotations

from typing import Annotated, Any

import rich.console
import rich.progress
import typer

from rstore.cli.arguments import Commands
from rstore.cli.connection import store_of
from rstore.cli.extend import extend
from rstore.cli.kinds import EndOption, FreqOption, KeyArgument, StartOption, span, timestamp
from rstore.cli.output import print_line, print_values
from rstore.cli.plot import plot
from rstore.core.command import Failure

ts = Commands("Time series.")


@ts.command("list")
def ts_list(context: typer.Context) -> None:
    """Print the key of every time series."""
    with store_of(context) as store:
        print_values(*store.timeseries())


@ts.command("range")
def ts_range(
    context: typer.Context,
    key: KeyArgument,
    start: StartOption = None,
    end: EndOption = None,
    n: Annotated[
        int | None, typer.Option(parser=span(0), metavar="COUNT", help="At most this many points.", show_default=False)
    ] = None,
    freq: FreqOption = None,
) -> None:
    """Print points, one [timestamp, value] per line."""
    with store_of(context) as store:
        print_values(*store.range(key, start, n=n, end=end, freq=freq))


@ts.command("first")
def ts_first(context: typer.Context, key: KeyArgument) -> None:
    """Print the first point."""
    with store_of(context) as store:
        print_values(_present(store.first(key), key))


@ts.command("last")
def ts_last(context: typer.Context, key: KeyArgument) -> None:
    """Print the last point."""
    with store_of(context) as store:
        print_values(_present(store.last(key), key))


@ts.command("missing")
def ts_missing(
    context: typer.Context,
    key: KeyArgument,
    start: Annotated[int, typer.Argument(parser=timestamp, metavar="START", help="The first timestamp of the grid.")],
    freq: Annotated[int, typer.Argument(parser=span(1), metavar="STEP", help="The step of the grid.")],
    end: EndOption = None,
) -> None:
    """Print those timestamps of START, START+STEP, ... that have no point, up to the end or the last point."""
    with store_of(context) as store:
        print_values(*store.missing(key, start, end, freq))


@ts.command("remove")
def ts_remove(context: typer.Context, key: KeyArgument, start: StartOption = None, end: EndOption = None) -> None:
    """Remove points, by default all."""
    with store_of(context, write=True) as store:
        store.remove(key, start=start, end=end)


ts.command("extend")(extend)


@ts.command("plot")
def ts_plot(
    context: typer.Context,
    key: KeyArgument,
    start: StartOption = None,
    end: EndOption = None,
    height: Annotated[int, typer.Option(parser=span(1, 100), metavar="LINES", help="How many lines of text.")] = 8,
    width: Annotated[
        int | None,
        typer.Option(
            parser=span(10, 1000), metavar="COLUMNS", help="How wide; by default as the terminal.", show_default=False
        ),
    ] = None,
) -> None:
    """Draw the numbers of a series."""
    with store_of(context) as store:
        points = store.range(key, start, end=end)
    numbers = [(t, value) for t, value in points if type(value) in (int, float)]
    if not numbers:
        raise Failure(f"the series has no numbers there: {key!r}")
    columns = width or rich.console.Console().width
    for line in plot(numbers, columns, height):
        print_line(line.rstrip())


def _present(point: Any, key: str) -> Any:
    if point is None:
        raise Failure(f"no such time series: {key!r}")
    return point
