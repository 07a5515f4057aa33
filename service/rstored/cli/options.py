"""Options that several commands have."""

from __future__ import annotations

from typing import Any, Final

import typer

DSN_OPTION: Final[Any] = typer.Option(help="Where the data is, for instance sqlite:///rstore.db. [env: RSTORED_DSN]")
