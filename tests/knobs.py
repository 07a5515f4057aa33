"""Variables of the environment by which a run of the tests is changed: how long, how often, with which seed."""

from __future__ import annotations

import os


def knob(name: str, default: str) -> str:
    """The value of a variable. One that is set and empty counts as not set, as in ``RSTORE_FUZZ_SEED= make test``."""
    return os.environ.get(name) or default
