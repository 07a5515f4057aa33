"""Write and read a series with rlib-store 0.1, the in-process library whose interface rstore has taken over.

    python rlib_points.py DSN POINTS

It prints the seconds that each took, as JSON.
"""

import json
import random
import sys
import time

from rstore import Store  # rlib-store's package, in the environment that runs this

dsn, count = sys.argv[1], int(sys.argv[2])
# Its Redis part keeps no more than ten digits of a timestamp apart from the value.
points = [(1_577_836_800 + number, round(random.random() * 100, 2)) for number in range(count)]
with Store(dsn, frozen=False) as store:
    started = time.perf_counter()
    store.extend("series", *points)
    written = time.perf_counter()
    read = store.range("series")
    ended = time.perf_counter()
    store.remove("series")
print(json.dumps({"write": written - started, "read": ended - written, "whole": list(read) == points}))
