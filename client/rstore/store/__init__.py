"""The stores: :class:`Store`, and :class:`AsyncStore`, whose methods are awaited.

One module for each kind of thing defines the operations of both. An operation is a generator that yields calls, gets
their answers, and returns its result; the two stores differ only in how they send a call. This room imports from every
room but the command line's.
"""

from rstore.store.awaited import AsyncStore
from rstore.store.blocking import Store
from rstore.store.kv import KEEP, Entry, Keep

__all__ = ["KEEP", "AsyncStore", "Entry", "Keep", "Store"]
