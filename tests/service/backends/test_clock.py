"""Following another clock over a network, whose delays are not known."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstored.backends.clock import Clock

DELAYS = st.floats(0, 2, allow_nan=False)
STEPS = st.lists(
    st.tuples(st.floats(0, 100), DELAYS, DELAYS, st.sampled_from([0.0, 0.0, 0.0, 7_200.0, -7_200.0, 0.3])), min_size=1
)


@given(steps=STEPS)
def test_it_is_off_by_no_more_than_a_round_trip(steps: list[tuple[float, ...]]) -> None:
    now = {"monotonic": 0.0}
    ahead = 1e6
    clock = Clock()
    real = time.monotonic
    time.monotonic = lambda: now["monotonic"]
    last: Any = None
    correction_ms = 0.0
    try:
        for pause, up, down, step in steps:
            now["monotonic"] += pause
            ahead += step
            asked = now["monotonic"]
            read_ms = (asked + up + ahead) * 1000
            now["monotonic"] = asked + up + down
            clock.follow(read_ms, asked, now["monotonic"])
            true_ms = (now["monotonic"] + ahead) * 1000
            assert abs(true_ms - clock()) <= (up + down) * 1000 + 2
            # Unless the other clock was set back, it does not go back. When that is noticed, it takes the latest time
            # that is possible, which a later reading may correct by as much as that round trip took.
            if step < 0:
                correction_ms = max(correction_ms, (up + down) * 1000 + 1)
            assert last is None or step < 0 or clock() >= last - correction_ms
            last = clock()
    finally:
        time.monotonic = real


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    times = {"monotonic": 1_000.0, "unix": 1.7e9}
    monkeypatch.setattr(time, "monotonic", lambda: times["monotonic"])
    monkeypatch.setattr(time, "time_ns", lambda: int(times["unix"] * 1e9))
    monkeypatch.setattr(time, "time", lambda: times["unix"])
    return times


def test_a_clock_without_a_storages_is_this_machines(fake_time: dict[str, float]) -> None:
    clock = Clock()
    assert clock() == clock.earlier() == 1_700_000_000_000
    assert clock.machine_ahead_seconds == 0


def test_setting_this_machines_clock_changes_nothing(fake_time: dict[str, float]) -> None:
    clock = Clock()
    clock.follow(5_000.0, 1_000.0, 1_000.0)
    fake_time["unix"] += 7_200
    fake_time["monotonic"] += 1
    assert clock() == 6_000


def test_deleting_goes_by_whichever_clock_is_behind(fake_time: dict[str, float]) -> None:
    for ahead_ms in (7_200_000, -7_200_000):
        clock = Clock()
        clock.follow(1.7e12 + ahead_ms, 1_000.0, 1_000.0)
        assert clock.earlier() == 1_700_000_000_000 + min(ahead_ms, 0)
        assert clock.machine_ahead_seconds == -ahead_ms / 1000
