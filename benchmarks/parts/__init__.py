"""The parts of the benchmark, by name and in the order in which they are measured and shown."""

from benchmarks.figures import Part
from benchmarks.parts import (
    client,
    footprint,
    history,
    keys,
    kv,
    long_series,
    scaling,
    series,
    writers,
)

PARTS: dict[str, Part] = {
    "kv": kv.measure,
    "series": series.measure,
    "long_series": long_series.measure,
    "history": history.measure,
    "writers": writers.measure,
    "keys": keys.measure,
    "client": client.measure,
    "footprint": footprint.measure,
    "scaling": scaling.measure,
}
