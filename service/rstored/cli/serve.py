"""``rstored serve``."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from rstored.cli.options import DSN_OPTION
from rstored.cli.output import fail
from rstored.logs import configure_logging
from rstored.process import serving
from rstored.process.server import bind, within_open_files
from rstored.process.tls import tls_context
from rstored.process.workers import run_workers
from rstored.settings import InvalidSettings, load_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env: RSTORED_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [env: RSTORED_PORT]")] = None,
    dsn: Annotated[str | None, DSN_OPTION] = None,
    tls_cert: Annotated[
        str | None, typer.Option(help="Serve TLS with the certificates of this PEM file. [env: RSTORED_TLS_CERT]")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="PEM file of its key, if in another file. [env: RSTORED_TLS_KEY]")
    ] = None,
    tls_client_ca: Annotated[
        str | None,
        typer.Option(help="Take only clients with a certificate that this signed. [env: RSTORED_TLS_CLIENT_CA]"),
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Prefix of every path behind a proxy, like /store. [env: RSTORED_ROOT_PATH]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [env: RSTORED_LOG_LEVEL]")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log every request. [env: RSTORED_ACCESS_LOG]")
    ] = None,
    closed: Annotated[
        bool | None, typer.Option("--closed", help="Never serve without a token, whatever the storage says.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine, open to everybody who reaches it.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that serve; a core each is of use. [env: RSTORED_WORKERS]")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        settings = load_settings(
            host=host,
            port=port,
            dsn=dsn,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            root_path=root_path,
            log_level=log_level,
            access_log=access_log,
            closed=closed,
            insecure=insecure,
            workers=workers,
        )
        tls = tls_context(settings)
    except InvalidSettings as error:
        fail(str(error))
    configure_logging(settings.log_level)
    settings = settings.model_copy(update={"limits": within_open_files(settings.limits)})
    try:
        # The port comes first, because a second service on this port must not touch the data of the first.
        listener = bind(settings.host, settings.port, shared=settings.workers > 1)
    except OSError as error:
        fail(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    with listener:
        if settings.workers == 1:
            raise typer.Exit(serving.serve(settings, tls, listener))
        # This socket only reserves the port. Each worker listens on a socket of its own.
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        raise typer.Exit(run_workers(settings.workers, functools.partial(serving.serve_as_worker, settings, tls)))
