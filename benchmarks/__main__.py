"""Measure rstore against named peers, in turn, and say how the figures came about.

make bench                                       every part, figures written into benchmarks/
make bench PARTS="kv series"                     some parts
.venv/bin/python -m benchmarks --quick history   tiny sizes: does it run at all?
"""

from __future__ import annotations

import argparse
import time
import traceback

from benchmarks import report
from benchmarks.figures import FULL, QUICK
from benchmarks.parts import PARTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure rstore against named peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="write the figures into benchmarks/")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.write and options.quick:
        parser.error("quick figures mean nothing and are not written")
    size = QUICK if options.quick else FULL
    failed: list[str] = []
    print(report.machine())
    for part in options.parts or PARTS:
        started = time.monotonic()
        try:
            rows = PARTS[part](size)
        except Exception:
            # The others are worth their time all the same.
            print(f"\n## {part} failed\n\n{traceback.format_exc()}", flush=True)
            failed.append(part)
            continue
        print(f"\n## {part}\n\n{report.table(rows)}\n\n{time.monotonic() - started:.0f} s", flush=True)
        if options.write:
            report.write(part, size, rows)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
