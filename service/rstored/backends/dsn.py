"""What DSNs of all backends share: how a part is decoded, and the problem of a wrong DSN."""

from __future__ import annotations

from urllib.parse import unquote

from rstored.problems import Problem


def wrong(what: str) -> Problem:
    """The problem of a wrong DSN. ``what`` continues "the DSN …", and quotes nothing that could be a password."""
    return Problem("backend-unavailable", f"the DSN {what}")


def decoded(text: str, name: str) -> str:
    """A percent-encoded part of a DSN, decoded. If it does not decode, the problem says ``name``."""
    try:
        found = unquote(text, errors="strict")
        # Bytes of a command line that are not UTF-8 are surrogates here.
        found.encode()
        return found
    except UnicodeError:
        raise wrong(f"has a {name} that is not percent-encoded UTF-8") from None
