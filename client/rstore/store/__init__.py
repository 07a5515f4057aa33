"""``Store`` and ``AsyncStore``.

What both do is written once, in one module for each kind of thing: an operation is a generator that yields calls, is
sent their answers, and returns its result. ``Store`` and ``AsyncStore`` differ in how they send a call and in nothing
else.
"""

import functools
import types
from collections.abc import Callable

from rstore.store.awaited import AsyncStore
from rstore.store.base import Base
from rstore.store.blocking import Store
from rstore.store.kv import KEEP, Entry, Keep

__all__ = ["KEEP", "AsyncStore", "Entry", "Keep", "Store"]


def _constructor(kind: type) -> Callable[..., None]:
    """The constructor under the name of the class, which Python names for a wrong call."""
    common = Base.__init__
    made = types.FunctionType(common.__code__, common.__globals__, "__init__", common.__defaults__)
    functools.update_wrapper(made, common)
    made.__kwdefaults__ = common.__kwdefaults__
    made.__qualname__ = kind.__name__
    return made


for _kind in (Store, AsyncStore):
    setattr(_kind, "__init__", _constructor(_kind))  # noqa: B010 (a type checker would look at what it returns)
