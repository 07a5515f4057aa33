"""The figures as tables in ``README.md``, as ``results.json``, and as a picture."""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Row, Size
from benchmarks.parts import PARTS
from benchmarks.plot import plot

HERE = Path(__file__).parent


def machine() -> str:
    """The facts without which a figure says nothing."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        cpu = found[1]
    facts = [
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{os.cpu_count()} cores of {cpu}, shared by server and load",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        f"uvicorn {version('uvicorn')}",
        f"rstore {version('rstore')}",
    ]
    return " · ".join(facts)


def table(rows: list[Row]) -> str:
    """A table in Markdown: one row for each figure, then what has no ratio."""
    lines = ["| rstore | figure | against | its figure | ratio | of the rounds | reach | met |", "|" + " --- |" * 8]
    for row in rows:
        if isinstance(row, Figure):
            reach = "" if row.reach is None else f"{row.reach:.2f}"
            met = {None: "", True: "yes", False: "**no**"}[row.met]
            lines.append(
                f"| {row.what} | {_number(statistics.median(row.ours))} {row.unit} | {row.peer} "
                f"| {_number(statistics.median(row.theirs))} {row.unit} | **{_ratio(row.ratio)}** "
                f"| {_ratio(min(row.ratios))} to {_ratio(max(row.ratios))} | {reach} | {met} |"
            )
        else:
            lines.append(f"| {row.what} | {row.text} | | | | | | |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three significant digits, with thousands separated."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    """Never rounded up: what misses its number by a little must not seem to reach it."""
    return f"{int(value * 100) / 100:.2f}" if value < 100 else f"{int(value):,}"


def write(part: str, size: Size, rows: list[Row]) -> None:
    """Put the part's figures into ``results.json``, the picture, and between its markers in ``README.md``."""
    path = HERE / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[part] = {"machine": machine(), "rounds": size.rounds, "rows": [_as_json(row) for row in rows]}
    results = {name: results[name] for name in PARTS if name in results}
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (HERE / "results.svg").write_text(plot(results), encoding="utf-8")
    _write_between(part, f"{table(rows)}\n\n{size.rounds} rounds. {machine()}.\n")


def _as_json(row: Row) -> dict[str, Any]:
    if isinstance(row, Figure):
        return {**row._asdict(), "ratios": row.ratios, "ratio": row.ratio, "met": row.met}
    return row._asdict()


def _write_between(part: str, text: str) -> None:
    path = HERE / "README.md"
    begin, end = f"<!-- {part} -->\n", f"<!-- /{part} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no markers for {part}")
    path.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
