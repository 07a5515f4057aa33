"""``rstore ts extend``: the points of a file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, NoReturn

import rich.console
import rich.progress
import typer

from rstore.cli.connection import standard_input, store_of
from rstore.cli.json_rows import Part
from rstore.cli.kinds import KeyArgument, filled
from rstore.cli.lines import BadRow
from rstore.cli.output import print_values
from rstore.cli.tables import Layout, read_points
from rstore.cli.times import time_reader
from rstore.cli.times import time_zone as time_zone_of
from rstore.codec.values import load
from rstore.core.command import Failure
from rstore.core.encodings import Encoding
from rstore.core.errors import StoreEncodingError, StoreError, StoreLimitError
from rstore.core.point_rows import Form
from rstore.core.points import Cells, Points
from rstore.store import Store

_FORMS: Final = {
    ".csv": Form.CSV,
    ".tsv": Form.CSV,
    ".ndjson": Form.NDJSON,
    ".jsonl": Form.NDJSON,
    ".json": Form.JSON,
}
_NDJSON_BY_DEFAULT: Final = ". Standard input is read as NDJSON unless --csv or --json is given"
_CHARACTERS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "space": " "}


def _option(metavar: str, about: str, **settings: Any) -> Any:
    return typer.Option(metavar=metavar, help=about, show_default=False, **settings)


def _character(text: str) -> str:
    character = _CHARACTERS.get(text, text)
    if len(character) != 1 or character in "\r\n":
        raise typer.BadParameter("write one character, or tab, space, comma or semicolon")
    return character


def _encoding(name: str) -> str:
    try:
        b"\0\0\0\0".decode(name, "replace")
    except (LookupError, ValueError):
        raise typer.BadParameter("Python knows no such encoding of text") from None
    return name


def extend(
    context: typer.Context,
    key: KeyArgument,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Its name says the format: .csv, .tsv, .ndjson, .jsonl or .json. Standard input if left out.",
            show_default=False,
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="The format is CSV.")] = False,
    ndjson: Annotated[bool, typer.Option("--ndjson", help="It is NDJSON, as of standard input by default.")] = False,
    json: Annotated[bool, typer.Option("--json", help="It is JSON, which is read as a whole.")] = False,
    encoding: Annotated[
        str, _option("NAME", "Of the text, by default utf-8; a byte order mark overrules it.", parser=_encoding)
    ] = "utf-8",
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="CSV: whether the first record names the columns; by default, if its time is not an integer.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, _option("COLUMN", "CSV: name or number of the column of values.", parser=filled)
    ] = None,
    time_column: Annotated[
        str | None, _option("COLUMN", "CSV: name or number of the column of times; by default 1.", parser=filled)
    ] = None,
    na: Annotated[
        list[str] | None, _option("TEXT", "CSV: a value that is none; its rows are skipped. May be given again.")
    ] = None,
    delimiter: Annotated[
        str | None,
        _option("CHARACTER", "CSV: by default the one of , ; and tab in the first line.", parser=_character),
    ] = None,
    quote: Annotated[str | None, _option("CHARACTER", 'CSV: by default ".', parser=_character)] = None,
    escape: Annotated[str | None, _option("CHARACTER", "CSV: by default none.", parser=_character)] = None,
    time_format: Annotated[
        str | None,
        _option(
            "FORMAT",
            "CSV: iso, a strptime format such as %d.%m.%Y, or s, ms, us or ns for numbers since 1970; by default "
            "timestamps as they are.",
            parser=filled,
        ),
    ] = None,
    unit: Annotated[
        Literal["s", "ms", "us", "ns"] | None,
        typer.Option(help="CSV: unit of the timestamps made of such times; by default the format's, or s."),
    ] = None,
    time_zone: Annotated[
        str | None, _option("ZONE", "CSV: of dates without one, like UTC or Europe/Berlin.", parser=filled)
    ] = None,
) -> None:
    """Add the points of a file. Every row is stored, or reported with its line.

    NDJSON has one [timestamp, value] to a line; JSON is {"points": [[timestamp, value], ...]} or that array alone; CSV
    has a column of times and one of values, which are JSON. Points are sent about a mebibyte of the file at a time. If
    a row is wrong, those before it are stored, and the exit code is 1.
    """
    form = _form(context, source, {"--csv": csv, "--ndjson": ndjson, "--json": json})
    said = source is not None or csv or ndjson or json
    given = {
        "--header": header,
        "--column": column,
        "--time-column": time_column,
        "--na": na,
        "--delimiter": delimiter,
        "--quote": quote,
        "--escape": escape,
        "--time-format": time_format,
        "--unit": unit,
        "--time-zone": time_zone,
    }
    for name, value in given.items():
        if form is not Form.CSV and value is not None:
            _refuse(context, name, "it is for CSV alone")
    if time_format is None and (unit or time_zone):
        _refuse(context, "--unit" if unit else "--time-zone", "it goes with --time-format")
    if delimiter is None and source is not None and source.suffix.lower() == ".tsv":
        delimiter = "\t"
    layout = Layout(
        time=_reader(context, time_format, unit, time_zone),
        integers=time_format is None,
        header=header,
        delimiter=delimiter,
        quote=quote or '"',
        escape=escape,
        time_column=time_column,
        value_column=column,
        missing=frozenset(text.strip() for text in na or ()),
    )
    _check_layout(context, layout)
    with _opened(source) as file, store_of(context, write=True) as store, _progress() as progress:
        bar = progress.add_task("bytes", total=_size(file))
        counted = _Counted(file, source)
        tally = _Tally()
        try:
            for part in read_points(counted, form, layout, encoding):
                _store(store, key, part, tally)
                progress.update(bar, completed=counted.count)
        except BadRow as error:
            raise Failure(f"{error}. {tally}{'' if said or tally.points else _NDJSON_BY_DEFAULT}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted. {tally}") from None
    print_values(tally.summary())


def _refuse(context: typer.Context, option: str, reason: str) -> NoReturn:
    raise typer.BadParameter(reason, ctx=context, param_hint=f"'{option}'")


def _form(context: typer.Context, source: Path | None, flags: dict[str, bool]) -> Form:
    said = [name for name, value in flags.items() if value]
    if len(said) > 1:
        _refuse(context, said[1], f"{said[0]} is given too")
    if said:
        return {"--csv": Form.CSV, "--ndjson": Form.NDJSON, "--json": Form.JSON}[said[0]]
    if source is None:
        return Form.NDJSON
    form = _FORMS.get(source.suffix.lower())
    if form is None:
        _refuse(context, "FILE", f"its name does not say the format; add {', '.join(flags)}")
    return form


def _reader(context: typer.Context, form: str | None, unit: str | None, zone: str | None) -> Any:
    try:
        tzinfo = None if zone is None else time_zone_of(zone)
    except ValueError as error:
        _refuse(context, "--time-zone", str(error))
    try:
        return time_reader(form, unit, tzinfo)
    except ValueError as error:
        _refuse(context, "--time-format", str(error))


def _check_layout(context: typer.Context, layout: Layout) -> None:
    marks = [layout.delimiter, layout.quote, layout.escape]
    if len({mark for mark in marks if mark}) < sum(map(bool, marks)):
        _refuse(context, "--delimiter", "delimiter, quote and escape are different characters")
    for name, column in (("--column", layout.value_column), ("--time-column", layout.time_column)):
        if column is None:
            continue
        if column.isdecimal():
            if int(column) < 1:
                _refuse(context, name, "columns are counted from 1")
        elif layout.header is False:
            _refuse(context, name, "without a header columns have numbers, not names")


@contextmanager
def _opened(source: Path | None) -> Iterator[IO[bytes]]:
    if source is None:
        yield standard_input()
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise Failure(f"cannot read {source}: {error.strerror}") from None
    with file:
        yield file


def _size(file: IO[bytes]) -> int | None:
    """How many bytes there are to read; None if that is not known."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class _Counted:
    """A file that counts the bytes that are read from it."""

    def __init__(self, file: IO[bytes], source: Path | None) -> None:
        self._file = file
        self._name = source or "standard input"
        self.count = 0

    def read(self, size: int, /) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise Failure(f"cannot read {self._name}: {error.strerror}") from None
        self.count += len(data)
        return data


class _Tally:
    """What became of the rows so far."""

    def __init__(self) -> None:
        self.points = 0
        self.replaced = 0
        self.skipped = 0

    def __str__(self) -> str:
        skipped = f", rows skipped: {self.skipped:,}" if self.skipped else ""
        return f"Points stored before: {self.points:,}{skipped}"

    def summary(self) -> dict[str, int]:
        """The counts that are not 0, and in any case that of points."""
        others = {"replaced": self.replaced, "skipped": self.skipped}
        return {"points": self.points} | {name: count for name, count in others.items() if count}


def _store(store: Store, key: str, part: Part, tally: _Tally) -> None:
    lines = f"{part.noun}s {part.first:,} to {part.last:,}"
    try:
        _check_encodings(store, part.points)
        _extend(store, key, part.points, tally)
    except StoreError as error:
        outcome = "; those of these lines may be stored" if error.outcome_unknown else ""
        raise Failure(f"{lines}: {error}{outcome}. {tally}") from None
    tally.replaced += part.rows - len(part.points)
    tally.skipped += part.skipped


def _extend(store: Store, key: str, points: Points, tally: _Tally) -> None:
    """Send points, and if the service takes fewer at a time, in halves."""
    try:
        store._run(store._extended(key, points))  # noqa: SLF001
    except StoreLimitError as error:
        if error.code not in ("batch-too-large", "body-too-large") or len(points) < 2:
            raise
        half = len(points) // 2
        _extend(store, key, points[:half], tally)
        _extend(store, key, points[half:], tally)
    else:
        tally.points += len(points)


def _check_encodings(store: Store, points: Points) -> None:
    """Raise for a value that nobody could read back: a pickle of unknown types, or one that would be sealed twice."""
    if not isinstance(points.values, Cells):
        return
    encodings = points.encodings
    if Encoding.SEALED in encodings and store._codec.sealer is not None:  # noqa: SLF001
        raise StoreEncodingError("there are values that are sealed already; they are imported without a key")
    if Encoding.PICKLE in encodings:
        for value in points.values:
            if value.encoding is Encoding.PICKLE:
                load(value, trusted=False)


def _progress() -> rich.progress.Progress:
    """A progress bar on standard error, if that is a terminal."""
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TransferSpeedColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
