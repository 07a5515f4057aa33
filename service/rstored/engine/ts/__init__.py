"""Time series: what each operation means, on blocks of points.

A series is a record whose head counts its points and whose rows, in lane 0, are its blocks, found by their first
timestamp. A write reads and writes only the blocks that its points fall into. A read goes page by page, so its memory
is that of a page. Between two pages others may write: a reader then sees their points or not, but never one twice
or out of order.
"""

from rstored.engine.ts.series import TimeSeries

__all__ = ["TimeSeries"]
