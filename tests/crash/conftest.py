"""The seed of a run."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("RSTORE_CRASH_SEED") or random.randrange(2**32))
    print(f"RSTORE_CRASH_SEED={seed}")
    return seed
