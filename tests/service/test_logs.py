"""Logs are JSON lines without values."""

from __future__ import annotations

import json
import logging
import sys

from rstored.logs import JSONFormatter


def record(message: str, *arguments: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    return logging.getLogger("rstored.x").makeRecord(
        "rstored.x", level, __file__, 1, message, arguments, None, extra=extra
    )


def test_a_record_is_one_line_of_json():
    line = JSONFormatter().format(record("two\nlines %d", 5, request_id="r-1", path=JSONFormatter))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["message"] == "two\nlines 5"
    assert fields["level"] == "info"
    assert fields["logger"] == "rstored.x"
    assert fields["request_id"] == "r-1"
    assert fields["time"].endswith("+00:00")
    assert set(fields) == {"time", "level", "logger", "message", "request_id", "path"}


def test_an_exception_is_told_without_its_message():
    made = record("failed", level=logging.ERROR)
    try:
        raise KeyError("a secret")
    except KeyError:
        made.exc_info = sys.exc_info()
    line = JSONFormatter().format(made)
    assert "secret" not in line
    fields = json.loads(line)
    assert fields["exception"] == "KeyError"
    assert fields["frames"][0].endswith("test_an_exception_is_told_without_its_message")
