"""Logs: one JSON object a line on standard error, with request ids and never a value."""

from __future__ import annotations

import datetime
import logging
import traceback
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from rstored.engine.model import TokenInfo

__all__ = ["JSONFormatter", "TokenChange", "configure_logging", "log_token_change"]

TokenChange: TypeAlias = Literal["created", "rotated", "revoked"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JSONFormatter(logging.Formatter):
    """A record as one line: time, level, logger, message, and whatever ``extra`` held.

    An exception is shown by its type and frames. Its message is left out: it may quote a value.
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
    """Log that a token was made, given another secret or revoked: which one it is, never its text.

    ``token`` is its id where no more is known. ``by`` says who did it, and from where. That is logged even if not every
    request is logged.
    """
    if isinstance(token, str):
        told: dict[str, Any] = {"changed_token_id": token}
    else:
        told = {
            "changed_token_id": token.id,
            "access": token.access.name.lower(),
            "namespaces": token.namespaces,
            "expires": token.expires_ms,
        }
    logging.getLogger("rstored.tokens").info("token %s", change, extra=told | by)


def configure_logging(level: str) -> None:
    """Send every logger's records to standard error as JSON lines from ``level`` up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its warnings are about clients: one is gone while something is still written to it, once for each write.
    logging.getLogger("asyncio").setLevel("ERROR")
