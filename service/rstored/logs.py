"""Logs: one JSON object per line on standard error, with request ids and without values."""

from __future__ import annotations

import datetime
import logging
import traceback
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from rstored.engine.model import TokenInfo

TokenChange: TypeAlias = Literal["created", "rotated", "revoked"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JSONFormatter(logging.Formatter):
    """A record as one line: time, level, logger, message, and everything in ``extra``.

    An exception is shown by its type and frames. Its message is left out, because it may quote a value.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["frames"] = _frames(record.exc_info[2])
        return msgspec.json.encode(line, enc_hook=str).decode()


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def log_token_change(change: TokenChange, token: TokenInfo | str, **by: Any) -> None:
    """Log that a token was made, rotated or revoked. The line has its id, and never its text.

    ``token`` is only the id if no more is known. ``by`` says who did it, and from where. The line is written even if
    requests are not logged.
    """
    if isinstance(token, str):
        shown: dict[str, Any] = {"changed_token_id": token}
    else:
        shown = {
            "changed_token_id": token.id,
            "access": token.access.name.lower(),
            "namespaces": token.namespaces,
            "expires": token.expires_ms,
        }
    logging.getLogger("rstored.tokens").info("token %s", change, extra=shown | by)


def configure_logging(level: str) -> None:
    """Send every logger's records to standard error as JSON lines from ``level`` up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # asyncio warns of each write to a client that is gone.
    logging.getLogger("asyncio").setLevel("ERROR")
