"""The example, run as a newcomer runs it; what it prints is compared with what the data say without rstore."""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def rows(name: str) -> list[dict[str, str]]:
    package = importlib.util.find_spec("vega_datasets")
    assert package is not None
    assert package.origin is not None
    with (Path(package.origin).parent / "_data" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def when(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("/", "-")).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def server(serve_module, tmp_path_factory) -> str:
    """The address of a service with an empty store."""
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('store') / 'rstore.db'}").url


@pytest.fixture(scope="module")
def facts() -> dict[str, list[str]]:
    """What the example must say, by the name of the line."""
    hours = {when(row["date"]): row["temp"] for row in rows("seattle-temps.csv")}
    days = {when(row["date"]): row for row in rows("seattle-weather.csv")}
    stocks: dict[str, list[float]] = {}
    for row in rows("stocks.csv"):
        stocks.setdefault(row["symbol"], []).append(float(row["price"]))

    july = {hour: float(temp) for hour, temp in hours.items() if hour.month == 7}
    warmest = min(july, key=lambda hour: (-july[hour], hour))
    noons = [str(temp) for hour, temp in july.items() if hour.hour == 12][:7]
    grid = [when("2010/01/01") + timedelta(hours=hour) for hour in range(365 * 24)]
    gaps = [hour for hour in grid if hour not in hours]
    last = days[max(days)]
    grown = ", ".join(f"{symbol} {prices[-1] / prices[0]:.1f}" for symbol, prices in sorted(stocks.items()))

    rainy = [day for day, row in days.items() if day.year == 2012 and row["weather"] == "rain"]
    before = [day for day in rainy if day < when("2012/06/21")]
    # One event for each of the two items at the start and on a rainy day, and one for each of twelve deliveries.
    events = 2 + 2 * len(rainy) + 12
    loaded = len(hours) + len(days) + sum(map(len, stocks.values()))
    return {
        "loaded": [f"{loaded:,} points in {2 + len(stocks)} series"],
        "read back": ["every point as it was"],
        "range": [
            f"July 2010 has {len(july)} hours, the warmest {warmest:%Y-%m-%d %H:%M} with {july[warmest]} °F",
            f"its first noons: {', '.join(noons)} °F",
        ],
        "missing": [f"{len(gaps)} hour of 2010, when the clocks went forward: {gaps[0]:%Y-%m-%d %H:%M}"],
        "iscomplete": ["the weather of every day since 2012 is known"],
        "last": [f"{max(days):%Y-%m-%d %H:%M}: {last['weather']}, {last['temp_min']} to {last['temp_max']} °C"],
        "stocks": [f"grew by a factor of {grown}"],
        "apply": [f"{events} events"],
        "past": [
            f"on 2012-06-21 the shop had sold {2 * len(before)} and had {100 + 6 * 30 - 2 * len(before)}",
        ],
        "current": [f"at the end of 2012 it had sold {2 * len(rainy)} and had {100 + 12 * 30 - 2 * len(rainy)}"],
    }


def test_weather_tells_what_the_data_say_plain_and_sealed(server, facts):
    command = [sys.executable, str(ROOT / "examples" / "weather.py"), "--url", server]
    for _ in range(2):  # the second run finds what the first left
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        parts = re.split(r"^(plain|sealed): .*\n", done.stdout, flags=re.MULTILINE)
        assert parts[1::2] == ["plain", "sealed"]
        for text in parts[2::2]:
            told: dict[str, list[str]] = {}
            for line in text.splitlines():
                name, fact = re.fullmatch(r"  (\S+(?: \S+)?) {2,}(.*?)(?:  \([\d.]+ s, [\d,]+ \w+/s\))?", line).groups()
                told.setdefault(name, []).append(fact)
            assert told == facts


def test_weather_says_what_to_do_without_a_service():
    command = [sys.executable, str(ROOT / "examples" / "weather.py"), "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "make serve" in done.stderr
    assert "Traceback" not in done.stderr
