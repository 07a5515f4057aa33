"""Time series: ``rstore ts …``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final

import rich.console
import rich.progress
import typer

import rstore
from rstore.cli.arguments import Commands, EndOption, FreqOption, KeyArgument, StartOption, integer, span
from rstore.cli.connection import standard_input, store_of
from rstore.cli.output import print_line, print_values
from rstore.cli.plot import plot
from rstore.command import Failure
from rstore.point_rows import CSV_HEADER, Form, parse_points
from rstore.points import Cells, InvalidPoints
from rstore.values import load

__all__ = ["ts"]

ts = Commands("Time series.")

_LINES_AT_ONCE: Final = 50_000


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
        int | None, typer.Option(parser=integer, metavar="COUNT", help="At most this many points.", show_default=False)
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


def _present(point: Any, key: str) -> Any:
    if point is None:
        raise Failure(f"no such time series: {key!r}")
    return point


@ts.command("missing")
def ts_missing(
    context: typer.Context,
    key: KeyArgument,
    start: Annotated[int, typer.Argument(parser=integer, metavar="START", help="The first timestamp of the grid.")],
    freq: Annotated[int, typer.Argument(parser=integer, metavar="STEP", help="The step of the grid.")],
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


@ts.command("extend")
def ts_extend(
    context: typer.Context,
    key: KeyArgument,
    source: Annotated[
        Path | None, typer.Argument(help="A .csv or .ndjson file; standard input if left out.", show_default=False)
    ] = None,
    csv: Annotated[bool | None, typer.Option("--csv/--ndjson", help="The format, if the name does not say it.")] = None,
) -> None:
    """Add points: NDJSON of [timestamp, value], or CSV with the columns timestamp,value (as JSON).

    They are sent in parts of 50,000 points, each of which is stored altogether or not at all.
    """
    form = Form.CSV if csv or (csv is None and source is not None and source.suffix == ".csv") else Form.NDJSON
    try:
        size = None if source is None else source.stat().st_size
        file: IO[bytes] = standard_input() if source is None else source.open("rb")
    except OSError as error:
        raise Failure(f"cannot read {source}: {error.strerror}") from None
    count = 0
    with file, store_of(context, write=True) as store, _progress() as progress:
        task = progress.add_task("bytes", total=size)
        for number, (points, read) in enumerate(_parts(file, form)):
            try:
                store.extend(key, *points)
            except rstore.StoreError as error:
                raise Failure(f"part {number + 1} ({count} points are stored): {error}") from None
            count += len(points)
            progress.advance(task, read)
    print_values({"points": count})


def _progress() -> rich.progress.Progress:
    """A progress bar on standard error, if somebody watches."""
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TransferSpeedColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def _parts(file: IO[bytes], form: Form) -> Iterator[tuple[list[tuple[int, Any]], int]]:
    """Points of a file, many at a time, and how many bytes they were."""
    header = b""
    number = 0
    while lines := list(itertools.islice(file, _LINES_AT_ONCE)):
        body = b"".join(lines)
        read = len(body)
        if form is Form.CSV and not number:
            first = lines[0].lstrip(b"\xef\xbb\xbf")
            # Whatever the two columns are called, the first is the timestamp.
            header = lines[0] if first.strip() == CSV_HEADER.encode() else b"timestamp,value\n"
            if not first[:1].isdigit() and first[:1] != b"-":
                body = body[len(lines[0]) :]
        body = header + body
        try:
            points = parse_points(body, form)
        except InvalidPoints as error:
            where = f" at {error.pointer} of the part" if error.pointer else ""
            raise Failure(f"lines {number + 1} to {number + len(lines)}{where}: {error}") from None
        column = points.values
        values: Iterable[Any] = (
            [load(cell, trusted=False) for cell in column] if isinstance(column, Cells) else column.tolist()
        )
        yield list(zip(points.timestamps.tolist(), values, strict=True)), read
        number += len(lines)


@ts.command("plot")
def tsplot(
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
