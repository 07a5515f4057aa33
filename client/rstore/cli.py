"""The ``rstore`` command: talks to a service through :class:`~rstore.store.Store`.

Results are JSON on standard output, one per line; what went wrong is one line on standard error, and exit code 1.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final, NoReturn

try:
    import rich.console
    import rich.progress
    import rich.text
    import typer
except ModuleNotFoundError:
    raise SystemExit("rstore: the command line needs two more packages: pip install 'rstore[cli]'") from None

import msgspec

import rstore
from rstore import calls
from rstore.arguments import check_environment
from rstore.calls import AccessLevel
from rstore.durations import InvalidDuration, parse_duration
from rstore.operators import OPERATORS, UNARY
from rstore.point_rows import CSV_HEADER, Form, parse_points
from rstore.points import Cells, InvalidPoints
from rstore.rotation import Kind
from rstore.values import load

__all__ = ["cli", "main"]

_LINES_AT_ONCE: Final = 50_000
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_PLOT_LEVELS: Final = " ▁▂▃▄▅▆▇█"

_OPTIONS: Final[dict[str, Any]] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # In markup a [key, value] in a help text would vanish.
}
cli = typer.Typer(help="Talk to an rstore service.", **_OPTIONS)
ts = typer.Typer(help="Time series.", **_OPTIONS)
es = typer.Typer(help="Event sequences.", **_OPTIONS)
ns = typer.Typer(help="Namespaces.", **_OPTIONS)
cli.add_typer(ts, name="ts")
cli.add_typer(es, name="es")
cli.add_typer(ns, name="ns")
token = typer.Typer(help="Access tokens, for those who may administer everything.", **_OPTIONS)
cli.add_typer(token, name="token")


def main() -> None:
    """Run the command."""
    try:
        cli()
    except rstore.StoreError as error:
        # Whoever repeats a command must know whether it has had an effect.
        outcome = "; it was done" if error.done else "; it may have been done" if error.outcome_unknown else ""
        _fail(f"{error}{outcome}")
    except BrokenPipeError:
        # Whoever read the output has seen enough. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(reason: str) -> NoReturn:
    sys.stderr.write("rstore: " + "".join(c if c.isprintable() or c == "\n" else " " for c in reason) + "\n")
    sys.exit(1)


# --- options, input and output -----------------------------------------------------------------------------


@cli.callback()
def _root(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="RSTORE_URL", help="The service's URL.", show_default=False)] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", envvar="RSTORE_NAMESPACE", help="The namespace.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="RSTORE_KEY", help="Seal and open values with this key.", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="RSTORE_TOKEN", help="The bearer token.", show_default=False)
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(envvar="RSTORE_CA", help="PEM file of the certificates to verify with.", show_default=False),
    ] = None,
    cert: Annotated[
        str | None,
        typer.Option(envvar="RSTORE_CERT", help="PEM file of a client certificate and its key.", show_default=False),
    ] = None,
) -> None:
    """Talk to an rstore service."""
    # What is set and empty would count as not set.
    check_environment()
    verify = True if ca is None else ca
    context.obj = {"dsn": url, "namespace": namespace, "key": key, "token": token, "verify": verify, "cert": cert}


def _store(context: typer.Context, *, write: bool = False, **changed: Any) -> rstore.Store:
    return rstore.Store(**{**context.obj, **changed}, frozen=not write)


@contextlib.contextmanager
def _connected(context: typer.Context, *, write: bool = False) -> Iterator[rstore.Store]:
    """A store whose namespace need not exist, and is not created."""
    with contextlib.closing(_store(context, write=write)) as store:
        store._connect()  # noqa: SLF001
        yield store


def _shown(value: Any) -> str:
    """A value as JSON; what JSON has no form for stands as base64 or as Python shows it."""

    def substitute(part: Any) -> Any:
        return {"base64": base64.b64encode(part).decode()} if isinstance(part, bytes) else repr(part)

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=substitute)
    except (ValueError, TypeError):
        text = json.dumps(repr(value), ensure_ascii=False)
    # Whoever wrote the value does not command the reader's terminal. All that is escaped stands inside of strings.
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def _escaped(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else json.dumps(character[0])[1:-1]


def _print(*values: Any) -> None:
    for value in values:
        typer.echo(_shown(value))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        _fail(f"not JSON: {text[:60]!r} (a string needs its quotes: '\"text\"')")


# --- key/value ---------------------------------------------------------------------------------------------

KeyArgument = Annotated[str, typer.Argument(help="The key.")]
KeysArgument = Annotated[list[str], typer.Argument(help="The keys.")]
StartOption = Annotated[int | None, typer.Option(help="First timestamp, inclusive.")]
EndOption = Annotated[int | None, typer.Option(help="Last timestamp, inclusive.")]
FreqOption = Annotated[int | None, typer.Option(help="Least distance between two timestamps.")]


@cli.command()
def get(
    context: typer.Context,
    key: KeyArgument,
    raw: Annotated[bool, typer.Option("--raw", help="Write a bytes value as it is.")] = False,
) -> None:
    """Print the value of a key as JSON."""
    with _store(context) as store:
        entry = store.entry(key)
    if entry is None:
        _fail(f"no such key: {key!r}")
    if not raw:
        _print(entry.value)
    elif isinstance(entry.value, bytes):
        sys.stdout.buffer.write(entry.value)
    else:
        _fail("the value is not bytes; leave out --raw")


@cli.command("set")
def set_(
    context: typer.Context,
    key: KeyArgument,
    value: Annotated[str | None, typer.Argument(help="JSON; standard input if left out.", show_default=False)] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires.")] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if the key is not there.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Store the bytes of standard input as they are.")] = False,
) -> None:
    """Store a JSON value, and print its ETag."""
    given = sys.stdin.buffer.read() if raw else _json(sys.stdin.read() if value is None else value)
    with _store(context, write=True) as store:
        _print(store.set(key, given, ttl=rstore.KEEP if ttl is None else ttl, if_absent=if_absent))


@cli.command("del")
def delete(context: typer.Context, keys: KeysArgument) -> None:
    """Delete keys; those that are not there do no harm."""
    with _store(context, write=True) as store:
        store.delete(*keys)


@cli.command()
def keys(context: typer.Context) -> None:
    """Print every key, one per line."""
    with _store(context) as store:
        _print(*store)


@cli.command()
def find(
    context: typer.Context,
    pattern: Annotated[list[str] | None, typer.Argument(help="Globs: * is any run of characters, ? is one.")] = None,
) -> None:
    """Print [key, value] of the keys that match, one pair per line."""
    with _store(context) as store:
        _print(*store.find(*pattern or ()))


@cli.command()
def info(context: typer.Context) -> None:
    """Print what the service says of itself, and what the namespace holds."""
    with _connected(context) as store:
        # These two are no operations of a store, so the calls are run as they are.
        service = store._run(iter(calls.service_info()))  # noqa: SLF001
        namespace = store._run(iter(calls.ns_info(store.namespace)))  # noqa: SLF001
    _print({"service": service, "namespace": namespace and {part: getattr(namespace, part) for part in _INFO}})


_INFO: Final = ("namespace", "sealed_only", "kv", "ts", "es")


@cli.command()
def keygen() -> None:
    """Print a new key for sealing. Keep it: without it nobody opens what it seals."""
    typer.echo(rstore.generate_key())


@cli.command()
def rotate(
    context: typer.Context,
    old_key: Annotated[
        list[str] | None,
        typer.Option(envvar="RSTORE_OLD_KEYS", help="A key that values are still sealed under.", show_default=False),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing, only count.")] = False,
) -> None:
    """Seal every value of the namespace anew with the key, while others read and write.

    What is not sealed is counted and left alone. Exit code 1 if a sealed value is left under another key.
    """
    new = context.obj["key"]
    if new is None:
        _fail("the new key is needed, as --key or RSTORE_KEY")
    with _store(context, write=not check, key=[new, *(old_key or ())]) as store, _rotation_progress() as progress:
        bars = {kind: progress.add_task(what, total=None, skipped=0) for kind, what in _ROTATED.items()}

        def show(rotation: rstore.Rotation) -> None:
            skipped = rotation.current + rotation.unsealed + rotation.failed
            for kind, bar in bars.items():
                done, total = rotation.done[kind], rotation.total[kind]
                progress.update(bar, completed=done, total=max(done, total), skipped=skipped)

        rotation = store.rotate(check=check, progress=show)
    for place, reason in rotation.unrotated:
        sys.stderr.write(f"rstore: {place.kind} {_shown(place._asdict())}: {reason}\n")
    _print({name: getattr(rotation, name) for name in _COUNTED})
    if not rotation.complete:
        sys.exit(1)


_ROTATED: Final[dict[Kind, str]] = {"kv": "pairs", "ts": "points", "es": "events"}
_COUNTED: Final = ("resealed", "current", "stale", "unsealed", "failed", "keys")


class _Rate(rich.progress.ProgressColumn):
    """How many are done in a second."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


def _rotation_progress() -> rich.progress.Progress:
    """A bar for each kind of values: how many are through, how fast, and how many were left as they were."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        _Rate(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[skipped]:,} left as they were"),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


# --- time series -------------------------------------------------------------------------------------------


@ts.command("list")
def ts_list(context: typer.Context) -> None:
    """Print the key of every time series."""
    with _store(context) as store:
        _print(*store.timeseries())


@ts.command("range")
def ts_range(
    context: typer.Context,
    key: KeyArgument,
    start: StartOption = None,
    end: EndOption = None,
    n: Annotated[int | None, typer.Option(help="At most this many points.")] = None,
    freq: FreqOption = None,
) -> None:
    """Print points, one [timestamp, value] per line."""
    with _store(context) as store:
        _print(*store.range(key, start, n=n, end=end, freq=freq))


@ts.command("first")
def ts_first(context: typer.Context, key: KeyArgument) -> None:
    """Print the first point."""
    with _store(context) as store:
        _print(_present(store.first(key), key))


@ts.command("last")
def ts_last(context: typer.Context, key: KeyArgument) -> None:
    """Print the last point."""
    with _store(context) as store:
        _print(_present(store.last(key), key))


def _present(point: Any, key: str) -> Any:
    if point is None:
        _fail(f"no such time series: {key!r}")
    return point


@ts.command("missing")
def ts_missing(
    context: typer.Context,
    key: KeyArgument,
    start: Annotated[int, typer.Argument(help="First timestamp of the grid.")],
    freq: Annotated[int, typer.Argument(help="Step of the grid.")],
    end: EndOption = None,
) -> None:
    """Print the timestamps start, start+freq, … that have no point."""
    with _store(context) as store:
        _print(*store.missing(key, start, end, freq))


@ts.command("remove")
def ts_remove(context: typer.Context, key: KeyArgument, start: StartOption = None, end: EndOption = None) -> None:
    """Remove points, by default all."""
    with _store(context, write=True) as store:
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
        file: IO[bytes] = sys.stdin.buffer if source is None else source.open("rb")
    except OSError as error:
        _fail(f"cannot read {source}: {error.strerror}")
    count = 0
    with file, _store(context, write=True) as store, _progress() as progress:
        task = progress.add_task("bytes", total=size)
        for number, (points, read) in enumerate(_parts(file, form)):
            try:
                store.extend(key, *points)
            except rstore.StoreError as error:
                _fail(f"part {number + 1} ({count} points are stored): {error}")
            count += len(points)
            progress.advance(task, read)
    _print({"points": count})


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
            _fail(f"lines {number + 1} to {number + len(lines)}{where}: {error}")
        column = points.values
        values: Iterable[Any] = (
            [load(cell, trusted=False) for cell in column] if isinstance(column, Cells) else column.tolist()
        )
        yield list(zip(points.timestamps.tolist(), values, strict=True)), read
        number += len(lines)


@ts.command("plot")
def ts_plot(
    context: typer.Context,
    key: KeyArgument,
    start: StartOption = None,
    end: EndOption = None,
    height: Annotated[int, typer.Option(help="Lines of text.", min=1, max=100)] = 8,
    width: Annotated[int | None, typer.Option(help="Columns; the terminal's by default.", min=10, max=1000)] = None,
) -> None:
    """Draw the numbers of a series."""
    with _store(context) as store:
        points = store.range(key, start, end=end)
    numbers = [(t, value) for t, value in points if type(value) in (int, float)]
    if not numbers:
        _fail(f"the series has no numbers there: {key!r}")
    columns = width or rich.console.Console().width
    for line in _plot(numbers, columns, height):
        typer.echo(line.rstrip())


def _plot(points: list[tuple[int, float]], width: int, height: int) -> Iterator[str]:
    """Lines of text in which each column shows the mean of the points that fall into it."""
    low, high = min(value for _, value in points), max(value for _, value in points)
    labels = f"{high:.6g}", f"{low:.6g}"
    margin = max(map(len, labels)) + 1
    width = max(width - margin - 1, 1)
    first, last = points[0][0], points[-1][0]
    sums = [0.0] * width
    counts = [0] * width
    for t, value in points:
        column = (t - first) * (width - 1) // max(last - first, 1)
        sums[column] += value - low
        counts[column] += 1
    steps = len(_PLOT_LEVELS) - 1
    scale = (height * steps - 1) / ((high - low) or 1)
    levels = [round(total / count * scale) + 1 if count else 0 for total, count in zip(sums, counts, strict=True)]
    for row in range(height - 1, -1, -1):
        label = labels[0] if row == height - 1 else labels[1] if row == 0 else ""
        cells = (_PLOT_LEVELS[min(max(level - row * steps, 0), steps)] for level in levels)
        yield f"{label:>{margin - 1}} │{''.join(cells)}"
    yield f"{'':>{margin}}└{first:<{max(width - len(str(last)), 0)}}{last}"


# --- event sequences ---------------------------------------------------------------------------------------


@es.command("list")
def es_list(context: typer.Context) -> None:
    """Print the key of every event sequence."""
    with _store(context) as store:
        _print(*store.eventsequences())


@es.command("apply")
def es_apply(
    context: typer.Context,
    key: KeyArgument,
    changes: Annotated[
        list[str],
        typer.Argument(help="item=JSON sets, item:add=JSON applies an operator, item:delitem needs no value."),
    ],
    t: Annotated[int | None, typer.Option(help="POSIX milliseconds; now by default.")] = None,
) -> None:
    """Record events, and print the new state."""
    with _store(context, write=True) as store:
        _print(store.apply(key, dict(map(_change, changes)), t))


def _change(text: str) -> tuple[str, Any]:
    left, equals, right = text.partition("=")
    item, colon, op = left.rpartition(":")
    if not colon or op not in OPERATORS:
        item, op = left, "setitem"
    if op in UNARY and not equals:
        return item, (OPERATORS[op],)
    if not equals or op in UNARY:
        _fail(f"not a change: {text[:60]!r}; write item=JSON, item:OPERATOR=JSON or item:delitem")
    return item, (OPERATORS[op], _json(right))


@es.command("current")
def es_current(context: typer.Context, key: KeyArgument) -> None:
    """Print the current state."""
    with _store(context) as store:
        _print(_state(store.current(key), key))


@es.command("past")
def es_past(
    context: typer.Context, key: KeyArgument, t: Annotated[int, typer.Argument(help="POSIX milliseconds.")]
) -> None:
    """Print the state as of a time."""
    with _store(context) as store:
        _print(_state(store.past(key, t), key))


def _state(state: Any, key: str) -> Any:
    if state is None:
        _fail(f"no such event sequence, or none as of then: {key!r}")
    return state


@es.command("events")
def es_events(context: typer.Context, key: KeyArgument, start: StartOption = None, end: EndOption = None) -> None:
    """Print events, one [timestamp, item, operator, value] per line."""
    with _store(context) as store:
        for t, item, op, value in _state(store.events(key, start, end), key):
            _print([t, item, op.__name__, value])


@es.command("prune")
def es_prune(
    context: typer.Context,
    keys: KeysArgument,
    remove: Annotated[bool, typer.Option(help="Remove sequences whose state is empty.")] = True,
) -> None:
    """Delete the events that the current state no longer needs."""
    with _store(context, write=True) as store:
        store.prune(*keys, remove=remove)


# --- namespaces --------------------------------------------------------------------------------------------

NamespaceArgument = Annotated[str, typer.Argument(help="The namespace.")]


@ns.command("list")
def ns_list(context: typer.Context) -> None:
    """Print the name of every namespace."""
    with _connected(context) as store:
        _print(*store.namespaces())


@ns.command("create")
def ns_create(
    context: typer.Context,
    namespace: NamespaceArgument,
    sealed_only: Annotated[bool, typer.Option("--sealed-only", help="Take only sealed values from now on.")] = False,
) -> None:
    """Create a namespace, or leave it as it is."""
    with _store(context, write=True, namespace=namespace, sealed_only=sealed_only or None):
        pass


@ns.command("discard")
def ns_discard(
    context: typer.Context,
    namespace: NamespaceArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a namespace and everything in it."""
    if not yes:
        typer.confirm(f"Delete everything in namespace {namespace}?", abort=True, err=True)
    with _store(context, write=True, namespace=namespace) as store:
        store.discard()


# --- tokens ------------------------------------------------------------------------------------------------

TokenArgument = Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `list` tells it.")]


@token.command("list")
def token_list(context: typer.Context) -> None:
    """Print every token, without its text, one per line."""
    with _connected(context) as store:
        _print(*map(msgspec.to_builtins, store.tokens()))


@token.command("create")
def token_create(
    context: typer.Context,
    namespace: Annotated[
        list[str], typer.Option(help="A namespace that it reaches, or a glob; may be given again. '*' is all.")
    ],
    access: Annotated[AccessLevel, typer.Option(help="What it allows; metrics is /metrics alone, of '*'.")],
    expires: Annotated[str | None, typer.Option(help="How long it lasts, like 90d; by default until revoked.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Make a token and print it, this once."""
    lifetime = None if expires is None else _seconds(expires)
    with _connected(context, write=True) as store:
        _print_token(store.create_token(namespace, access, label=label, lifetime=lifetime))


@token.command("rotate")
def token_rotate(
    context: typer.Context,
    token_id: TokenArgument,
    grace: Annotated[str, typer.Option(help="How much longer the old text counts, like 1h.")] = "0",
) -> None:
    """Give a token another text and print it, this once."""
    seconds = _seconds(grace)
    with _connected(context, write=True) as store:
        _print_token(store.rotate_token(token_id, grace=seconds))


@token.command("revoke")
def token_revoke(context: typer.Context, token_id: TokenArgument) -> None:
    """End a token. One that is not there is a failure: it may be another that was meant."""
    with _connected(context, write=True) as store:
        store.revoke_token(token_id)


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except InvalidDuration as error:
        _fail(str(error))


def _print_token(made: rstore.NewToken) -> None:
    """The text alone on standard output, so that it can be piped to where it is kept."""
    typer.echo(made.text)
    typer.echo(f"rstore: this is token {made.id}; it is not shown again", err=True)


if __name__ == "__main__":
    main()
