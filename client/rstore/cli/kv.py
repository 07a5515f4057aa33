"""Key/value pairs: ``rstore get``, ``set``, ``del``, ``keys`` and ``find``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import rstore
from rstore.cli.connection import read_input, store_of
from rstore.cli.exact import json_text
from rstore.cli.kinds import KeyArgument, KeysArgument, seconds
from rstore.cli.output import print_values
from rstore.core.command import Failure
from rstore.core.encodings import InvalidJSON


def get(
    context: typer.Context,
    key: KeyArgument,
    raw: Annotated[bool, typer.Option("--raw", help="Write a bytes value as it is.")] = False,
) -> None:
    """Print the value of a key as JSON."""
    with store_of(context) as store:
        entry = store.entry(key)
    if entry is None:
        raise Failure(f"no such key: {key!r}")
    if not raw:
        print_values(entry.value)
    elif isinstance(entry.value, bytes):
        sys.stdout.buffer.write(entry.value)
    else:
        raise Failure("the value is not bytes; leave out --raw")


def set_(
    context: typer.Context,
    key: KeyArgument,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", help="JSON; standard input if left out.", show_default=False)
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="SECONDS", help="Let it expire after so long.", show_default=False),
    ] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if the key is not there.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Store the bytes of standard input as they are.")] = False,
) -> None:
    """Store a JSON value, and print its ETag.

    The text is stored as it stands, with every digit.
    """
    if raw and value is not None:
        raise typer.BadParameter("it stores standard input, so leave out VALUE", ctx=context, param_hint="'--raw'")
    given: bytes = read_input() if value is None else value.encode()
    if not raw:
        try:
            given = json_text(given)
        except InvalidJSON as error:
            if value is None:
                raise Failure(f"standard input: {error}") from None
            raise typer.BadParameter(str(error), ctx=context, param_hint="'VALUE'") from None
    with store_of(context, write=True) as store:
        print_values(store.set(key, given, ttl=rstore.KEEP if ttl is None else ttl, if_absent=if_absent))


def delete(context: typer.Context, keys: KeysArgument) -> None:
    """Delete keys; those that are not there do no harm."""
    with store_of(context, write=True) as store:
        store.delete(*keys)


def keys(context: typer.Context) -> None:
    """Print every key, one per line."""
    with store_of(context) as store:
        print_values(*store)


def find(
    context: typer.Context,
    pattern: Annotated[
        list[str] | None,
        typer.Argument(metavar="GLOB", help="* is any run of characters, ? is one; all keys if left out."),
    ] = None,
) -> None:
    """Print [key, value] of the keys that match, one pair per line."""
    with store_of(context) as store:
        print_values(*store.find(*pattern or ()))
