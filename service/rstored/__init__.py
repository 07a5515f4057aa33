"""The rstore service: a FastAPI server over the store engine. Console script: ``rstored``."""

from __future__ import annotations

from rstore.core.version import __version__

__all__ = ["__version__"]
