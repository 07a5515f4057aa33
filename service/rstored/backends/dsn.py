"""What DSNs of every backend have in common: how a part is decoded, and what is said of a wrong one."""

from __future__ import annotations

from urllib.parse import unquote

from rstored.problems import Problem

__all__ = ["decoded", "wrong"]


def wrong(what: str) -> Problem:
    """The problem of a DSN. ``what`` continues "the DSN …" and holds nothing of it that could be a password."""
    return Problem("backend-unavailable", f"the DSN {what}")


def decoded(text: str, name: str) -> str:
    """A percent-encoded part of a DSN, whose name is said if it does not decode."""
    try:
        found = unquote(text, errors="strict")
        # A command line holds other bytes too, as surrogates.
        found.encode()
        return found
    except UnicodeError:
        raise wrong(f"has a {name} that is not percent-encoded UTF-8") from None
