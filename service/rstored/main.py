"""The ``rstored`` command."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, NoReturn, TypeVar

import typer
import uvloop

from rstore.core.durations import InvalidDuration, parse_duration
from rstored import __version__
from rstored.addresses import is_loopback
from rstored.api.openapi import declare_routes, document
from rstored.app import running_app
from rstored.backends import backend_class
from rstored.engine.engine import Engine
from rstored.engine.model import Access, AccessLevel, NewToken, Page, TokenInfo
from rstored.logs import TokenChange, configure_logging, log_token_change
from rstored.problems import Problem
from rstored.server import Server, bind, within_open_files
from rstored.settings import InvalidSettings, Settings, load_settings
from rstored.tls import tls_context
from rstored.workers import Worker, run_workers

__all__ = ["cli"]

cli = typer.Typer(
    help="The rstore service: key/value pairs, time series and event sequences over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # In markup an [env: NAME] in a help text would vanish.
)

token = typer.Typer(
    help="Access tokens, straight in the storage, while services run on it or not.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli.add_typer(token, name="token")

logger = logging.getLogger("rstored")

T = TypeVar("T")

_DSN_OPTION = typer.Option(help="Where the data is, for instance sqlite:///rstore.db. [env: RSTORED_DSN]")


def _complain(reason: str) -> None:
    print(f"rstored: {reason}", file=sys.stderr)  # noqa: T201


def _fail(reason: str) -> NoReturn:
    """End with one line that says why."""
    _complain(reason)
    raise typer.Exit(1)


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


@cli.command()
def migrate(
    dsn: Annotated[str | None, _DSN_OPTION] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; exit with 1 if the storage has another schema."),
    ] = False,
) -> None:
    """Bring the storage to this version's schema, and exit; `serve` does that too."""
    try:
        settings = load_settings(dsn=dsn)
        asyncio.run(_check_schema(settings) if check else _migrate(settings))
    except (InvalidSettings, Problem) as error:
        _fail(str(error))


async def _migrate(settings: Settings) -> None:
    backend = await backend_class(settings.dsn).open(settings.dsn)
    await backend.close()


async def _check_schema(settings: Settings) -> None:
    versions = await backend_class(settings.dsn).schema_versions(settings.dsn)
    print(f"the storage has schema version {versions.present}; this rstored knows {versions.known}")  # noqa: T201
    if versions.present != versions.known:
        newer = versions.present > versions.known
        _fail("run the newer rstored that made it" if newer else "run `rstored migrate`, or `rstored serve`")


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env: RSTORED_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [env: RSTORED_PORT]")] = None,
    dsn: Annotated[str | None, _DSN_OPTION] = None,
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
        _fail(str(error))
    configure_logging(settings.log_level)
    settings = settings.model_copy(update={"limits": within_open_files(settings.limits)})
    try:
        # The port comes first: a second start must not touch the data of the first.
        listener = bind(settings.host, settings.port, shared=settings.workers > 1)
    except OSError as error:
        _fail(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    with listener:
        if settings.workers == 1:
            raise typer.Exit(_run(settings, tls, listener))
        # This socket only keeps the port: each worker listens on one of its own.
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        raise typer.Exit(run_workers(settings.workers, functools.partial(_work, settings, tls)))


def _work(settings: Settings, tls: ssl.SSLContext | None, worker: Worker) -> int:
    with bind(settings.host, settings.port, shared=True) as listener:
        return _run(settings, tls, listener, worker)


def _run(settings: Settings, tls: ssl.SSLContext | None, listener: socket.socket, worker: Worker | None = None) -> int:
    """Serve in this process until it is told to stop; the exit code."""
    try:
        uvloop.run(_serve(settings, tls, listener, worker))
    except (Problem, _OpenToAll) as error:
        _complain(str(error))
        return 1
    return 0


class _OpenToAll(Exception):
    """The service would be reachable from other machines, and nothing would keep anybody out."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} can be reached from other machines, and nothing keeps anybody out: make a token "
            "(`rstored token create --namespace '*' --access admin`), or set RSTORED_ADMIN_TOKEN, or listen on "
            "127.0.0.1, or give --insecure if that is what you want"
        )


async def _serve(
    settings: Settings, tls: ssl.SSLContext | None, listener: socket.socket, worker: Worker | None
) -> None:
    reachable = not is_loopback(settings.host)
    if reachable and not (settings.insecure or settings.closed or settings.admin_token):
        versions = await backend_class(settings.dsn).schema_versions(settings.dsn)
        if not versions.present:
            # Without a store there is no token, and who is refused leaves none behind.
            raise _OpenToAll(settings.host)
    async with running_app(settings, worker=None if worker is None else worker.number) as app:
        authentication = app.state.authentication
        is_closed = await authentication.is_closed()
        if reachable and not is_closed and not settings.insecure:
            raise _OpenToAll(settings.host)
        try:
            await authentication.check_storage()
        except Problem as problem:
            logger.error(problem.code, extra={"detail": problem.detail})
        host, port = listener.getsockname()[:2]
        scheme = "http" if tls is None else "https"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        backend = app.state.backend.describe()

        def started() -> None:
            if worker is not None:
                if worker.serves is None:
                    return
                os.write(worker.serves, b"!")
            line = f"rstored {__version__} listens on {address}, data in {_without_password(settings.dsn)}"
            print(line, flush=True)  # noqa: T201
            logger.info("listening", extra={"address": address, "backend": backend["name"]})
            if "warning" in backend:
                logger.warning(backend["warning"], extra={"backend": backend["name"]})
            if reachable and is_closed and tls is None:
                logger.warning("tokens and data go over the network in clear, unless a proxy adds TLS")

        server = Server(app, settings, tls, started)
        if worker is not None:
            asyncio.get_running_loop().add_reader(worker.parent, _stop_without, worker.parent)
        await server.serve(listener)
        logger.info("stopped")


def _stop_without(parent: int) -> None:
    """Stop, as nobody else would tell a worker to whose parent is gone."""
    asyncio.get_running_loop().remove_reader(parent)
    signal.raise_signal(signal.SIGTERM)


# --- tokens ------------------------------------------------------------------------------------------------

_IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `list` tells it.")]


@token.command("create")
def token_create(
    namespace: Annotated[
        list[str], typer.Option(help="A namespace that it reaches, or a glob; may be given again. '*' is all.")
    ],
    access: Annotated[AccessLevel, typer.Option(help="What it allows; metrics is /metrics alone, of '*'.")],
    expires: Annotated[str | None, typer.Option(help="How long it lasts, like 90d; by default until revoked.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    dsn: Annotated[str | None, _DSN_OPTION] = None,
) -> None:
    """Make a token and print it, this once. From the first one on, nobody is let in without."""
    lifetime = None if expires is None else _seconds(expires)
    made = _in_storage(
        dsn,
        lambda engine: engine.tokens.create(namespace, Access[access.upper()], label=label, lifetime_seconds=lifetime),
    )
    _log("created", made.info)
    _print_token(made)


@token.command("list")
def token_list(dsn: Annotated[str | None, _DSN_OPTION] = None) -> None:
    """Print every token, without its secret, as JSON, one per line."""

    async def tokens(engine: Engine) -> list[TokenInfo]:
        found: list[TokenInfo] = []
        page: Page[TokenInfo] = Page([], "")
        while page.cursor is not None:
            page = await engine.tokens.list(after=page.cursor or None)
            found += page.items
        return found

    for info in _in_storage(dsn, tokens):
        line = {
            "id": info.id,
            "label": info.label,
            "namespaces": info.namespaces,
            "access": info.access.name.lower(),
            "created": info.created_ms,
            "expires": info.expires_ms,
        }
        print(json.dumps(line, ensure_ascii=False))  # noqa: T201


@token.command("revoke")
def token_revoke(token_id: _IdArgument, dsn: Annotated[str | None, _DSN_OPTION] = None) -> None:
    """End a token. Services that run forget it within RSTORED_TOKEN_CACHE_SECONDS."""
    if not _in_storage(dsn, lambda engine: engine.tokens.revoke(token_id)):
        _fail("there is no token with this id")
    _log("revoked", token_id)


@token.command("rotate")
def token_rotate(
    token_id: _IdArgument,
    grace: Annotated[str, typer.Option(help="How much longer the old secret counts, like 1h.")] = "0",
    dsn: Annotated[str | None, _DSN_OPTION] = None,
) -> None:
    """Give a token another secret and print it, this once."""
    seconds = _seconds(grace)
    made = _in_storage(dsn, lambda engine: engine.tokens.rotate(token_id, grace_seconds=seconds))
    _log("rotated", made.info)
    _print_token(made)


def _in_storage(dsn: str | None, work: Callable[[Engine], Awaitable[T]]) -> T:
    """What ``work`` returns of an engine on the storage."""

    async def run(settings: Settings) -> T:
        backend = await backend_class(settings.dsn).open(settings.dsn)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(backend.close)
            engine = Engine(backend)
            stack.push_async_callback(engine.stop)
            return await work(engine)

    try:
        settings = load_settings(dsn=dsn)
        configure_logging(settings.log_level)
        return asyncio.run(run(settings))
    except (InvalidSettings, Problem) as error:
        _fail(str(error))


def _log(change: TokenChange, changed: TokenInfo | str) -> None:
    """Log what was done to a token, and as which user of this machine."""
    log_token_change(change, changed, uid=os.getuid())


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except InvalidDuration as error:
        _fail(str(error))


def _print_token(made: NewToken) -> None:
    """The text alone on standard output, so that it can be piped to where it is kept."""
    # The id comes first: if the text cannot be written, it says which token to revoke.
    print(f"rstored: this is token {made.info.id}; it is not shown again", file=sys.stderr)  # noqa: T201
    print(made.text)  # noqa: T201


# --- addresses ---------------------------------------------------------------------------------------------


def _without_password(dsn: str) -> str:
    # To the last @: a password may hold one unescaped. Drivers take passwords as parameters too.
    without = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", dsn)
    return re.sub(r"((?:password|secret|_key)=)[^&]*", r"\1***", without, flags=re.IGNORECASE)
