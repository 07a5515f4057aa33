"""The lock files as they are read by the tests."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# An index, a path or an option of pip would have to stand on a line of its own, or in one of these.
ENTRY = re.compile(r"""([a-z0-9-]+==[a-z0-9.]+)( ; [\w '"().<>=!]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)""")


def entries(lock: str) -> list[tuple[str, str, set[str]]]:
    """Each entry of a lock: the name with its version, the marker, the hashes."""
    text = (ROOT / "locks" / lock).read_text().replace("\\\n", "")
    matches = [(line, ENTRY.fullmatch(line)) for line in text.splitlines() if not line.startswith("#")]
    assert [line for line, match in matches if match is None] == []
    return [(match[1], match[2] or "", set(match[3].split())) for _, match in matches]


def pins(lock: str) -> dict[str, str]:
    """What a lock installs on this machine."""
    requirements = [Requirement(version + marker) for version, marker, _ in entries(lock)]
    here = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    pinned = {str(canonicalize_name(r.name)): str(r.specifier).removeprefix("==") for r in here}
    assert len(pinned) == len(here), "a name is pinned twice"
    return pinned
