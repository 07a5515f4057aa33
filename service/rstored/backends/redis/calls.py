"""Calls to Redis: commands and scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from typing import Final, NamedTuple, TypeAlias

from hiredis import pack_command

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
    """The arguments of a script, or of a plain command, and the slot that it is about.

    In a cluster ``keys`` are all the keys that a script touches. So, while their slot moves from one node to another,
    Redis refuses to run the script on a node that does not have all of them. A call with ``once`` is not sent again if
    the connection breaks before the answer.
    """

    slot: int
    script: Script | None
    arguments: Sequence[Argument]
    keys: Collection[bytes] = ()
    once: bool = False

    def command(self, unloaded: bool) -> tuple[Argument, ...]:
        """The call as it is sent. A server to which the script is ``unloaded`` gets its source."""
        if self.script is None:
            return tuple(self.arguments)
        if unloaded:
            return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.arguments)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)


# redis-py's own packing takes several times as long. hiredis takes one tuple with any number of arguments.
packed: Final[Callable[[tuple[Argument, ...]], bytes]] = pack_command  # type: ignore[assignment]
