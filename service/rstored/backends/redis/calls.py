"""What is sent to Redis: commands and scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from typing import Final, NamedTuple, TypeAlias

from hiredis import pack_command

__all__ = ["Argument", "Call", "Script", "packed"]

Argument: TypeAlias = bytes | str | int


class Script(NamedTuple):
    """A Lua script of the folder ``lua``."""

    source: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        source = resources.files("rstored.backends.redis").joinpath("lua", name).read_text("utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """A script's or, without one, a plain command's arguments, and the slot that it is about.

    In a cluster ``keys`` are all the keys that a script is going to touch: while their slot moves from one node to
    another, Redis then refuses to run it on a node that has not all of them. What is to be sent at most ``once`` is
    not sent again when the connection breaks before the answer.
    """

    slot: int
    script: Script | None
    arguments: Sequence[Argument]
    keys: Collection[bytes] = ()
    once: bool = False

    def command(self, unloaded: bool) -> tuple[Argument, ...]:
        """As it goes over the wire; a server that does not know the script has to be sent its source."""
        if self.script is None:
            return tuple(self.arguments)
        if unloaded:
            return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.arguments)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)


# redis-py's own way to do this takes several times as long; hiredis takes any number of arguments in its one tuple.
packed: Final[Callable[[tuple[Argument, ...]], bytes]] = pack_command  # type: ignore[assignment]
