"""``rstored migrate``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from rstored.backends import backend_class
from rstored.cli.options import DSN_OPTION
from rstored.cli.output import fail
from rstored.problems import Problem
from rstored.settings import InvalidSettings, Settings, load_settings


def migrate(
    dsn: Annotated[str | None, DSN_OPTION] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; exit with 1 if the storage has another schema."),
    ] = False,
) -> None:
    """Bring the storage to the schema of this version, and exit. `serve` does that too."""
    try:
        settings = load_settings(dsn=dsn)
        asyncio.run(_check_schema(settings) if check else _migrate(settings))
    except (InvalidSettings, Problem) as error:
        fail(str(error))


async def _migrate(settings: Settings) -> None:
    backend = await backend_class(settings.dsn).open(settings.dsn)
    await backend.close()


async def _check_schema(settings: Settings) -> None:
    versions = await backend_class(settings.dsn).schema_versions(settings.dsn)
    print(f"the storage has schema version {versions.present}; this rstored knows {versions.known}")  # noqa: T201
    if versions.present != versions.known:
        newer = versions.present > versions.known
        fail("run the newer rstored that made it" if newer else "run `rstored migrate`, or `rstored serve`")
