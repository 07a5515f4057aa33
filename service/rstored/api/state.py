"""Everything that lives as long as the service does; every request sees it."""

from __future__ import annotations

import dataclasses

from rstored.api.access import Authentication
from rstored.api.metrics import Metrics
from rstored.api.origins import Origins
from rstored.backends.abc import Backend
from rstored.engine.engine import Engine
from rstored.limits import Limits
from rstored.turns import Turns

__all__ = ["State"]


@dataclasses.dataclass(slots=True)
class State:
    """What the service owns while it runs, and the settings that requests ask for.

    ``stopping`` turns true when it has been told to stop. ``bytes_held`` counts the large bodies and answers of the
    requests under way, ``bytes_held_of`` those of each client. ``long_bodies`` are turns: who has one is worked on.
    """

    backend: Backend
    engine: Engine
    limits: Limits
    metrics: Metrics
    authentication: Authentication
    origins: Origins
    root_path: str = ""
    access_log: bool = False
    docs: bool = True
    stopping: bool = False
    bytes_held: int = 0
    bytes_held_of: dict[str, int] = dataclasses.field(default_factory=dict)
    # One is parsed while the other waits for the backend.
    long_bodies: Turns = dataclasses.field(default_factory=lambda: Turns(2))
