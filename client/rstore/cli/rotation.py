"""Rotation of keys: ``rstore rotate``."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import rich.console
import rich.progress
import rich.text
import typer

import rstore
from rstore.cli.connection import store_of
from rstore.cli.kinds import sealing_key
from rstore.cli.output import print_values, shown
from rstore.core.command import Failure
from rstore.sealing.rotation import Kind

_ROTATED: Final[dict[Kind, str]] = {"kv": "pairs", "ts": "points", "es": "events"}
_COUNTED: Final = ("resealed", "current", "stale", "unsealed", "failed", "keys")


def rotate(
    context: typer.Context,
    old_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="RSTORE_OLD_KEYS",
            parser=sealing_key,
            metavar="KEY",
            help="A key that values are still sealed under; may be given again.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing, only count.")] = False,
) -> None:
    """Seal every value of the namespace again, with the key, while others read and write.

    What is not sealed is counted and left alone. Exit code 1 if a sealed value is left under another key.
    """
    new = context.obj["key"]
    if new is None:
        raise Failure("the new key is needed, as --key or RSTORE_KEY", 2)
    with store_of(context, write=not check, key=[new, *(old_key or ())]) as store, _rotation_progress() as progress:
        bars = {kind: progress.add_task(what, total=None, skipped=0) for kind, what in _ROTATED.items()}

        def show(rotation: rstore.Rotation) -> None:
            skipped = rotation.current + rotation.unsealed + rotation.failed
            for kind, bar in bars.items():
                done, total = rotation.done[kind], rotation.total[kind]
                progress.update(bar, completed=done, total=max(done, total), skipped=skipped)

        rotation = store.rotate(check=check, progress=show)
    for place, reason in rotation.unrotated:
        sys.stderr.write(f"rstore: {place.kind} {shown(place._asdict())}: {reason}\n")
    print_values({name: getattr(rotation, name) for name in _COUNTED})
    if not rotation.complete:
        raise typer.Exit(1)


def _rotation_progress() -> rich.progress.Progress:
    """A bar for each kind of values: how many are done, how fast, and how many were left as they were."""
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


class _Rate(rich.progress.ProgressColumn):
    """How many values are done in a second."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")
