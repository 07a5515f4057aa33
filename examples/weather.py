"""Load real weather and stock prices into rstore, plain and sealed, and ask it questions.

In one terminal ``make serve``, in another::

    .venv/bin/python examples/weather.py

The data are files of the PyPI package ``vega_datasets`` (weather of Seattle by NOAA, stock prices); nothing is
fetched. The script empties the two namespaces it uses, ``weather-plain`` and ``weather-sealed``, and leaves its
data there to look at: ``curl 'http://127.0.0.1:8000/ns/weather-plain/ts/seattle%2Ftemperature/last'``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import operator
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rstore import Store, StoreNotAvailableError, generate_key

HOUR = 3_600_000  # timestamps are POSIX milliseconds
DAY = 24 * HOUR

TEMPERATURE = "seattle/temperature"  # hourly, 2010
WEATHER = "seattle/weather"  # daily, 2012 to 2015: a dict each
UMBRELLAS = "shop/umbrellas"

Points = list[tuple[int, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Load real data into rstore and ask it questions.")
    parser.add_argument("--url", default=None, help="the service (default: RSTORE_URL, then http://127.0.0.1:8000)")
    url = parser.parse_args().url

    series = read_series()
    try:
        print("plain: the service can read and fold every value")
        with Store(url, "weather-plain", frozen=False) as store:
            tell(store, series)
        print("sealed: the service holds ciphertext only; this script has the key")
        with Store(url, "weather-sealed", generate_key(), frozen=False) as store:
            tell(store, series)
    except StoreNotAvailableError as error:
        answered = error.status is not None
        raise SystemExit(str(error) if answered else f"{error}\nIn another terminal: make serve") from None


def tell(store: Store, series: dict[str, Points]) -> None:
    """Load everything into an empty namespace, then print one line per question."""
    store.discard()
    load(store, series)
    ask(store)
    keep_inventory(
        store, rainy_days=[(t, day["weather"] == "rain") for t, day in series[WEATHER] if t < at("2013-01-01")]
    )


def load(store: Store, series: dict[str, Points]) -> None:
    started = time.perf_counter()
    for key, points in series.items():
        store.extend(key, *points)
    loaded = sum(map(len, series.values()))
    say("loaded", f"{loaded:,} points in {len(store.timeseries())} series", rate(loaded, "points", started))

    started = time.perf_counter()
    same = all(store.range(key) == points for key, points in series.items())
    say("read back", "every point as it was" if same else "NOT as it was", rate(loaded, "points", started))


def ask(store: Store) -> None:
    july = store.range(TEMPERATURE, at("2010-07-01"), end=at("2010-08-01") - 1)
    warmest, degrees = max(july, key=lambda point: point[1])
    say("range", f"July 2010 has {len(july)} hours, the warmest {text(warmest)} with {degrees} °F")

    noons = store.range(TEMPERATURE, at("2010-07-01") + 12 * HOUR, n=7, freq=DAY)
    say("range", f"its first noons: {', '.join(str(degrees) for _, degrees in noons)} °F")

    gaps = store.missing(TEMPERATURE, at("2010-01-01"), freq=HOUR)
    say("missing", f"{len(gaps)} hour of 2010, when the clocks went forward: {', '.join(map(text, gaps))}")

    complete = store.iscomplete(WEATHER, at("2012-01-01"), freq=DAY)
    say("iscomplete", f"the weather of {'every' if complete else 'NOT every'} day since 2012 is known")

    last = store.last(WEATHER)
    assert last is not None
    say("last", f"{text(last[0])}: {last[1]['weather']}, {last[1]['temp_min']} to {last[1]['temp_max']} °C")

    closes = [
        (key.removeprefix("stocks/"), store.first(key), store.last(key))
        for key in store.timeseries()
        if key.startswith("stocks/")
    ]
    grown = ", ".join(f"{symbol} {last[1] / first[1]:.1f}" for symbol, first, last in closes if first and last)
    say("stocks", f"grew by a factor of {grown}")


def keep_inventory(store: Store, rainy_days: list[tuple[int, bool]]) -> None:
    """A shop starts 2012 with 100 umbrellas, sells two on a rainy day and gets 30 more on the first of a month."""
    started = time.perf_counter()
    store.apply(UMBRELLAS, {"stock": 100, "sold": 0}, t=rainy_days[0][0] - 1)
    for t, rain in rainy_days:
        if text(t)[8:10] == "01":
            store.apply(UMBRELLAS, {"stock": (operator.add, 30)}, t=t)
        if rain:
            store.apply(UMBRELLAS, {"stock": (operator.sub, 2), "sold": (operator.add, 2)}, t=t + 18 * HOUR)
    events = store.events(UMBRELLAS)
    assert events is not None
    say("apply", f"{len(events)} events", rate(len(events), "events", started))

    midsummer = store.past(UMBRELLAS, at("2012-06-21"))
    assert midsummer is not None
    say("past", f"on 2012-06-21 the shop had sold {midsummer['sold']} and had {midsummer['stock']}")
    now = store.current(UMBRELLAS)
    assert now is not None
    say("current", f"at the end of 2012 it had sold {now['sold']} and had {now['stock']}")


def read_series() -> dict[str, Points]:
    """The data sets as points, by series."""
    series: dict[str, Points] = {
        TEMPERATURE: [(at(row["date"], "%Y/%m/%d %H:%M"), float(row["temp"])) for row in rows("seattle-temps.csv")],
        WEATHER: [
            (
                at(row.pop("date"), "%Y/%m/%d"),
                {name: value if name == "weather" else float(value) for name, value in row.items()},
            )
            for row in rows("seattle-weather.csv")
        ],
    }
    for row in rows("stocks.csv"):
        series.setdefault(f"stocks/{row['symbol']}", []).append((at(row["date"], "%b %d %Y"), float(row["price"])))
    return series


def rows(name: str) -> Iterable[dict[str, str]]:
    """The rows of a CSV file that vega_datasets ships, without importing it (that would import pandas)."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise SystemExit("the data are in the package vega_datasets: make install, then .venv/bin/python")
    with (Path(package.origin).parent / "_data" / name).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def at(date: str, form: str = "%Y-%m-%d") -> int:
    return int(datetime.strptime(date, form).replace(tzinfo=UTC).timestamp() * 1000)


def text(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp / 1000, UTC):%Y-%m-%d %H:%M}"


def rate(count: int, what: str, started: float) -> str:
    seconds = time.perf_counter() - started
    return f"{seconds:.2f} s, {count / seconds:,.0f} {what}/s"


def say(name: str, fact: str, speed: str = "") -> None:
    print(f"  {name:<12}{fact}{f'  ({speed})' if speed else ''}")


if __name__ == "__main__":
    main()
