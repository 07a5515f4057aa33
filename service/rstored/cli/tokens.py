"""``rstored token``: access tokens. The command works on the storage, not through a service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from rstore.core.durations import InvalidDuration, parse_duration
from rstored.backends import backend_class
from rstored.cli.options import DSN_OPTION
from rstored.cli.output import fail
from rstored.engine.engine import Engine
from rstored.engine.model import Access, AccessLevel, NewToken, Page, TokenInfo
from rstored.logs import TokenChange, configure_logging, log_token_change
from rstored.problems import Problem
from rstored.settings import InvalidSettings, Settings, load_settings

T = TypeVar("T")

token = typer.Typer(
    help="Access tokens, directly in the storage. Services may run on it or not.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the token, as `list` prints it.")]


@token.command("create")
def token_create(
    namespace: Annotated[
        list[str], typer.Option(help="A namespace that it reaches, or a glob; may be repeated. '*' means all.")
    ],
    access: Annotated[AccessLevel, typer.Option(help="What it allows; metrics allows only /metrics, and needs '*'.")],
    expires: Annotated[str | None, typer.Option(help="How long it lasts, like 90d; by default until revoked.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    dsn: Annotated[str | None, DSN_OPTION] = None,
) -> None:
    """Make a token and print it. It is never printed again. With the first token, the store is closed."""
    lifetime = None if expires is None else _seconds(expires)
    made = _in_storage(
        dsn,
        lambda engine: engine.tokens.create(namespace, Access[access.upper()], label=label, lifetime_seconds=lifetime),
    )
    _log("created", made.info)
    _print_token(made)


@token.command("list")
def token_list(dsn: Annotated[str | None, DSN_OPTION] = None) -> None:
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
def token_revoke(token_id: _IdArgument, dsn: Annotated[str | None, DSN_OPTION] = None) -> None:
    """End a token. Running services refuse it within RSTORED_TOKEN_CACHE_SECONDS."""
    if not _in_storage(dsn, lambda engine: engine.tokens.revoke(token_id)):
        fail("there is no token with this id")
    _log("revoked", token_id)


@token.command("rotate")
def token_rotate(
    token_id: _IdArgument,
    grace: Annotated[str, typer.Option(help="How much longer the old secret is valid, like 1h.")] = "0",
    dsn: Annotated[str | None, DSN_OPTION] = None,
) -> None:
    """Give a token a new secret and print it. It is never printed again."""
    seconds = _seconds(grace)
    made = _in_storage(dsn, lambda engine: engine.tokens.rotate(token_id, grace_seconds=seconds))
    _log("rotated", made.info)
    _print_token(made)


def _in_storage(dsn: str | None, work: Callable[[Engine], Awaitable[T]]) -> T:
    """What ``work`` returns, called with an engine on the storage."""

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
        fail(str(error))


def _log(change: TokenChange, changed: TokenInfo | str) -> None:
    """Log what was done to a token, and by which user of this machine."""
    log_token_change(change, changed, uid=os.getuid())


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except InvalidDuration as error:
        fail(str(error))


def _print_token(made: NewToken) -> None:
    """Print the text alone on standard output, so that it can be piped."""
    # The id is printed first. It says which token to revoke if the text cannot be written.
    print(f"rstored: this is token {made.info.id}; it is not shown again", file=sys.stderr)  # noqa: T201
    print(made.text)  # noqa: T201
