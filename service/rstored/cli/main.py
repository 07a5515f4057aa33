"""The command ``rstored``: its commands, two of which are one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rstored import __version__
from rstored.api.openapi import declare_routes, document
from rstored.cli.migrate import migrate
from rstored.cli.serve import serve
from rstored.cli.tokens import token

cli = typer.Typer(
    help="The rstore service: key/value pairs, time series and event sequences over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # In markup an [env: NAME] in a help text would vanish.
)
cli.add_typer(token, name="token")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)  # noqa: T201
        raise typer.Exit


@cli.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """The rstore service: key/value pairs, time series and event sequences over HTTP."""


@cli.command()
def version() -> None:
    """Print the version."""
    _version(wanted=True)


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    app = declare_routes(docs=False)
    print(json.dumps(document(app), indent=2, ensure_ascii=False))  # noqa: T201


cli.command()(migrate)
cli.command()(serve)
