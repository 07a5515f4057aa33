"""The rstore service: a FastAPI server over the store engine. Console script: ``rstored``."""

from __future__ import annotations

__version__ = "0.1.0"
