"""A series drawn as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_LEVELS: Final = " ▁▂▃▄▅▆▇█"


def plot(points: list[tuple[int, float]], width: int, height: int) -> Iterator[str]:
    """Lines of text in which each column shows the mean of the points that fall into it."""
    low, high = min(value for _, value in points), max(value for _, value in points)
    labels = f"{high:.6g}", f"{low:.6g}"
    margin = max(map(len, labels)) + 1
    width = max(width - margin - 1, 1)
    first, last = points[0][0], points[-1][0]
    sums = [0.0] * width
    counts = [0] * width
    for t, value in points:
        column = (t - first) * (width - 1) // max(last - first, 1)
        sums[column] += value - low
        counts[column] += 1
    steps = len(_LEVELS) - 1
    scale = (height * steps - 1) / ((high - low) or 1)
    levels = [round(total / count * scale) + 1 if count else 0 for total, count in zip(sums, counts, strict=True)]
    for row in range(height - 1, -1, -1):
        label = labels[0] if row == height - 1 else labels[1] if row == 0 else ""
        cells = (_LEVELS[min(max(level - row * steps, 0), steps)] for level in levels)
        yield f"{label:>{margin - 1}} │{''.join(cells)}"
    yield f"{'':>{margin}}└{first:<{max(width - len(str(last)), 0)}}{last}"
