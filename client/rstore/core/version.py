"""The version of SDK and service. Nothing else states it: the build reads it here."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
