"""What many points at once take of the service's memory."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import httpx2

from rstore.core.frames import encode_stream
from rstore.core.media_types import POINTS_MEDIA_TYPE
from rstore.core.points import Points

MEMORY_BYTES_MAX = 150_000_000
POINTS = 1_000_000
CALLS = 4


def test_a_million_points_a_call_and_all_of_them_out_again_take_little_memory(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", forked=False)
    url = f"{server.url}/ts/long/range"
    for call in range(CALLS):
        timestamps = array("q", range(call * POINTS, (call + 1) * POINTS))
        body = b"".join(encode_stream(Points(timestamps, array("d", timestamps))))
        taken = httpx2.post(url, content=body, headers={"Content-Type": POINTS_MEDIA_TYPE}, timeout=60)
        assert taken.json() == {"points": POINTS}
    with httpx2.stream("GET", url, headers={"Accept": POINTS_MEDIA_TYPE}, timeout=60) as answer:
        assert sum(map(len, answer.iter_raw())) > 8 * CALLS * POINTS
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 < MEMORY_BYTES_MAX
