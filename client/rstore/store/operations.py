"""Every operation of a store, for both ways to carry it out."""

from __future__ import annotations

from rstore.store.bare import TransportT
from rstore.store.es import EventSequences
from rstore.store.kv import KeyValue
from rstore.store.namespaces import Namespaces
from rstore.store.tokens import Tokens
from rstore.store.ts import TimeSeries


class Operations(
    KeyValue[TransportT],
    TimeSeries[TransportT],
    EventSequences[TransportT],
    Namespaces[TransportT],
    Tokens[TransportT],
):
    """The operations on each kind of thing."""
