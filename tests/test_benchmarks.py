"""The benchmarks run, and their page has a place for each part. What they measure is not tested: machines differ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.figures import Figure
from benchmarks.parts import PARTS
from benchmarks.plot import plot
from benchmarks.report import table

ROOT = Path(__file__).parent.parent


def test_they_run_in_tiny_sizes():
    # The parts that need no more than rstore: the peers are not everywhere, and a load takes seconds.
    parts = ("long_series", "history", "keys", "footprint")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *parts],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^## (\w+)$", done.stdout, re.MULTILINE) == list(parts)
    ratios = [float(ratio) for ratio in re.findall(r"\*\*([\d.]+)\*\*", done.stdout)]
    assert len(ratios) == 7 + 2 + 3 + 2
    assert all(ratio > 0 for ratio in ratios)


def test_every_part_has_its_place_in_the_page():
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^<!-- (\w+) -->$", page, re.MULTILINE) == list(PARTS)
    assert re.findall(r"^<!-- /(\w+) -->$", page, re.MULTILINE) == list(PARTS)


def test_a_ratio_is_above_1_where_rstore_is_better():
    rate = Figure("GET", "peer", "requests/s", [30.0, 10.0, 20.0], [10.0, 10.0, 10.0], reach=2.0)
    assert (rate.ratio, rate.met) == (2.0, True)
    cost = Figure("GET", "peer", "ms", [30.0, 10.0, 20.0], [10.0, 10.0, 10.0], reach=0.501)
    assert (cost.ratio, cost.met) == (0.5, False)


def test_a_ratio_is_not_rounded_up():
    almost = Figure("GET", "peer", "calls/s", [0.3499], [1.0], reach=0.35)
    assert "| **0.34** |" in table([almost])
    assert "| 0.35 | **no** |" in table([almost])


def test_the_picture_shows_each_figure():
    figures = [
        Figure(f"row {n} <&>", "peer", "ms", [2.0], [1.0], reach)._asdict() for n, reach in ((1, None), (2, 0.9))
    ]
    rows = [{**figure, "ratios": [0.5], "ratio": 0.5, "met": figure["reach"] and False} for figure in figures]
    picture = ElementTree.fromstring(plot({"kv": {"rows": [*rows, {"what": "a note", "text": "…"}]}}))
    dots = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 2
    # What misses its number has another colour than what has no number.
    assert len({dot.get("fill") for dot in dots}) == 2
