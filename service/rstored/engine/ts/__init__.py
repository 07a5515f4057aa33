"""Time series: what each operation means, on blocks of points.

A series is a record. Its head counts its points. Its rows, in lane 0, are its blocks, under their first timestamps. A
write reads and writes only the blocks that its points fall into. A read goes page by page, so it needs the memory of
one page. Others may write between two pages. A reader may then see their points or not, but it sees no point twice or
out of order.
"""

from rstored.engine.ts.series import TimeSeries

__all__ = ["TimeSeries"]
