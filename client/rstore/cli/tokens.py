"""Access tokens: ``rstore token …``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

import rstore
from rstore.calls.tokens import AccessLevel
from rstore.cli.arguments import Commands
from rstore.cli.connection import connected
from rstore.cli.kinds import duration, named
from rstore.cli.output import print_line, print_values

token = Commands("Access tokens, for those who may administer everything.")

_TokenArgument = Annotated[str, typer.Argument(parser=named, metavar="ID", help="The token's id, as `list` shows it.")]


def _span(low: int, about: str) -> Any:
    return typer.Option(parser=duration(low), metavar="SPAN", help=about, show_default=False)


@token.command("list")
def token_list(context: typer.Context) -> None:
    """Print every token, without its text, one per line."""
    with connected(context) as store:
        print_values(*map(msgspec.to_builtins, store.tokens()))


@token.command("create")
def token_create(
    context: typer.Context,
    namespace: Annotated[
        list[str],
        typer.Option(metavar="GLOB", help="A namespace or glob that it reaches; may be given again. '*' is all."),
    ],
    access: Annotated[AccessLevel, typer.Option(help="What it allows; metrics is /metrics alone, of '*'.")],
    expires: Annotated[int | None, _span(1, "How long it lasts, like 90d; by default until it is revoked.")] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.", show_default=False)] = "",
) -> None:
    """Make a token and print it, this once."""
    with connected(context, write=True) as store:
        _print_token(store.create_token(namespace, access, label=label, lifetime=expires))


@token.command("rotate")
def token_rotate(
    context: typer.Context,
    token_id: _TokenArgument,
    grace: Annotated[
        int | None, _span(0, "How much longer the old text counts, like 1h; by default no longer.")
    ] = None,
) -> None:
    """Give a token another text and print it, this once."""
    with connected(context, write=True) as store:
        _print_token(store.rotate_token(token_id, grace=grace or 0))


@token.command("revoke")
def token_revoke(context: typer.Context, token_id: _TokenArgument) -> None:
    """End a token. One that is not there is a failure: it may be another that was meant."""
    with connected(context, write=True) as store:
        store.revoke_token(token_id)


def _print_token(made: rstore.NewToken) -> None:
    """Print the text alone on standard output, so that a pipe can carry it to where it is kept.

    The id comes first, on standard error: if the text cannot be written, it names the token to revoke.
    """
    typer.echo(f"rstore: this is token {made.id}; it is not shown again", err=True)
    print_line(made.text)
