"""Namespaces: ``rstore ns …``."""

from __future__ import annotations

from typing import Annotated

import typer

from rstore.cli.arguments import Commands
from rstore.cli.connection import connected, standard_input, store_of
from rstore.cli.kinds import namespace_name
from rstore.cli.output import print_values

ns = Commands("Namespaces.")

_NamespaceArgument = Annotated[str, typer.Argument(parser=namespace_name, metavar="NAME", help="The namespace.")]


@ns.command("list")
def ns_list(context: typer.Context) -> None:
    """Print the name of every namespace."""
    with connected(context) as store:
        print_values(*store.namespaces())


@ns.command("create")
def ns_create(
    context: typer.Context,
    namespace: _NamespaceArgument,
    sealed_only: Annotated[bool, typer.Option("--sealed-only", help="Take only sealed values from now on.")] = False,
) -> None:
    """Create a namespace, or leave it as it is."""
    with store_of(context, write=True, namespace=namespace, sealed_only=sealed_only or None):
        pass


@ns.command("discard")
def ns_discard(
    context: typer.Context,
    namespace: _NamespaceArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a namespace and everything in it."""
    if not yes:
        standard_input()
        typer.confirm(f"Delete everything in namespace {namespace}?", abort=True, err=True)
    with store_of(context, write=True, namespace=namespace) as store:
        store.discard()
