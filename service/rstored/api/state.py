"""Everything that lives as long as the service does. Every request has access to it."""

from __future__ import annotations

import dataclasses
from typing import Final

from rstored.api.access import Authentication
from rstored.api.metrics import Metrics
from rstored.api.origins import Origins
from rstored.backends.abc import Backend
from rstored.engine.engine import Engine
from rstored.limits import Limits
from rstored.turns import Turns

# This many bytes of long bodies are worked on at once. Many bodies of some KiB still share a commit, but one of the
# longest is worked on alone, so that no commit waits long for it.
_LONG_BODIES_BYTES: Final = 256 * 2**10


@dataclasses.dataclass(slots=True)
class ServiceState:
    """What the service owns while it runs, and the settings that requests ask for.

    ``stopping`` becomes true when the service begins to stop. ``bytes_held`` counts the large bodies and answers of the
    requests under way, and ``bytes_held_of`` counts those of each client. ``long_bodies`` has the turns of long bodies.
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
    long_bodies: Turns = dataclasses.field(default_factory=lambda: Turns(_LONG_BODIES_BYTES))
