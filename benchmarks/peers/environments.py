"""Peers from PyPI live in virtual environments of their own, which ``make bench-peers`` makes under ``.venv/peers``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_PEERS = Path(__file__).parents[2] / ".venv" / "peers"


def program(environment: str, name: str) -> str:
    """The path of a program of an environment."""
    return str(_PEERS / environment / "bin" / name)


def missing(environment: str) -> str | None:
    """Why there is no such environment, or None."""
    return (
        None if (_PEERS / environment / ".installed").exists() else f"{environment} is not installed: make bench-peers"
    )


def call(environment: str, name: str, *arguments: str) -> None:
    """Run a program of an environment to its end."""
    done = subprocess.run([program(environment, name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def run(environment: str, script: str, *arguments: str | float) -> dict[str, Any]:
    """What a script of ``benchmarks/peers``, run by the environment's Python, prints as JSON."""
    command = [program(environment, "python"), "-I", str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{script} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
