"""What the documentation shows, taken from it word by word, so that a test can carry it out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def shown(page: str, marker: str, language: str = "sh") -> str:
    """The one fenced block of a page, in this language, that has the marker."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if marker in block]
    return str(block)
