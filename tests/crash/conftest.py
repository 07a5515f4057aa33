"""The seed of a run."""

from __future__ import annotations

import random

import pytest
from tests.knobs import knob


@pytest.fixture
def seed() -> int:
    seed = int(knob("RSTORE_CRASH_SEED", "0")) or random.randrange(2**32)
    print(f"RSTORE_CRASH_SEED={seed}")
    return seed
