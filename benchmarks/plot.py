"""All ratios in one picture: a dot for each figure on a logarithmic scale, and a mark where it should be at least."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LABELS, ROW, TOP = 1_000, 460, 17, 60
LEAST, MOST = 0.05, 100.0
TICKS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
MET, MISSED, OPEN = "#1a7f37", "#cf222e", "#57606a"


def plot(results: dict[str, Any]) -> str:
    """An SVG of what ``results.json`` holds."""
    drawn: list[str] = []
    y = TOP
    for part, result in results.items():
        figures = [row for row in result["rows"] if row.get("ratio") is not None]
        if not figures:
            continue
        drawn.append(_text(8, y + 12, part, "bold"))
        y += ROW
        for figure in figures:
            drawn.append(_row(figure, y))
            y += ROW
        y += ROW // 2
    grid = "".join(
        f'<line x1="{_x(tick):.0f}" x2="{_x(tick):.0f}" y1="{TOP - 8}" y2="{y}" '
        f'stroke="{"#24292f" if tick == 1 else "#d0d7de"}"/>' + _text(_x(tick), TOP - 14, f"{tick:g}", anchor="middle")
        for tick in TICKS
    )
    title = "How many times better rstore is. Dot: median, with the rounds' range. Mark: what it is to reach."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{_text(8, 20, title, "bold")}'
        f"{grid}{''.join(drawn)}</svg>\n"
    )


def _row(figure: dict[str, Any], y: int) -> str:
    middle = y + ROW // 2
    colour = {True: MET, False: MISSED, None: OPEN}[figure["met"]]
    low, high = _x(min(figure["ratios"])), _x(max(figure["ratios"]))
    drawn = _text(16, middle + 4, f"{figure['what']} ÷ {figure['peer']}")
    drawn += f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="2"/>'
    drawn += f'<circle cx="{_x(figure["ratio"]):.1f}" cy="{middle}" r="4" fill="{colour}"/>'
    if figure["reach"] is not None:
        x = _x(figure["reach"])
        drawn += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2}" y2="{y + ROW - 2}" stroke="{colour}" stroke-width="3"/>'
    return drawn


def _x(ratio: float) -> float:
    within = min(max(ratio, LEAST), MOST)
    return LABELS + (WIDTH - LABELS - 20) * math.log(within / LEAST) / math.log(MOST / LEAST)


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
