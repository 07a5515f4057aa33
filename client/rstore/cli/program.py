"""All commands, and the options that stand before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import rstore
from rstore import calls
from rstore.calls.arguments import check_environment
from rstore.cli import kv, rotation
from rstore.cli.arguments import Commands
from rstore.cli.connection import connected
from rstore.cli.es import es
from rstore.cli.kinds import access_token, address, authority_file, certificate_file, namespace_name, sealing_key
from rstore.cli.namespaces import ns
from rstore.cli.output import print_line, print_values
from rstore.cli.tokens import token
from rstore.cli.ts import ts

cli = Commands("Talk to an rstore service.")


def _option(variable: str, metavar: str, parser: Callable[[str], str], about: str, *names: str) -> Any:
    return typer.Option(*names, envvar=variable, parser=parser, metavar=metavar, help=about, show_default=False)


@cli.callback()
def _root(
    context: typer.Context,
    url: Annotated[str | None, _option("RSTORE_URL", "URL", address, "The service's URL.")] = None,
    namespace: Annotated[
        str | None, _option("RSTORE_NAMESPACE", "NAME", namespace_name, "The namespace.", "--namespace", "-n")
    ] = None,
    key: Annotated[str | None, _option("RSTORE_KEY", "KEY", sealing_key, "Seal and open values with this key.")] = None,
    token: Annotated[str | None, _option("RSTORE_TOKEN", "TEXT", access_token, "The bearer token.")] = None,
    ca: Annotated[
        str | None, _option("RSTORE_CA", "FILE", authority_file, "PEM file of the certificates to verify with.")
    ] = None,
    cert: Annotated[
        str | None, _option("RSTORE_CERT", "FILE", certificate_file, "PEM file of a client certificate and its key.")
    ] = None,
) -> None:
    """Talk to an rstore service: key/value pairs, time series and event sequences.

    Results are JSON on standard output, one to a line.
    """
    # Typer takes a variable that is set and empty for one that is not set.
    check_environment()
    context.obj = {
        "dsn": url,
        "namespace": namespace,
        "key": key,
        "token": token,
        "verify": True if ca is None else ca,
        "cert": cert,
    }


for _function, _name in ((kv.get, "get"), (kv.set_, "set"), (kv.delete, "del"), (kv.keys, "keys"), (kv.find, "find")):
    cli.command(_name)(_function)


@cli.command()
def info(context: typer.Context) -> None:
    """Print what the service says of itself, and what the namespace holds."""
    with connected(context) as store:
        # A store has no operations for these two, so this runs the calls themselves.
        service = store._run(iter(calls.service.info()))  # noqa: SLF001
        namespace = store._run(iter(calls.namespaces.info(store.namespace)))  # noqa: SLF001
    found = namespace and {part: getattr(namespace, part) for part in ("namespace", "sealed_only", "kv", "ts", "es")}
    print_values({"service": service, "namespace": found})


@cli.command()
def keygen() -> None:
    """Print a new key for sealing. Keep it: without it nobody opens what it seals."""
    print_line(rstore.generate_key())


cli.command("rotate")(rotation.rotate)
cli.add_typer(ts, name="ts")
cli.add_typer(es, name="es")
cli.add_typer(ns, name="ns")
cli.add_typer(token, name="token")
