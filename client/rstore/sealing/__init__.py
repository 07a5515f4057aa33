"""Sealing: values are encrypted by the client, each bound to the place it is stored at.

An envelope opens only with the right key *and* at the place it was sealed for: namespace, kind and key are in the
derivation of the encryption key; a point's timestamp and an event's timestamp, item and operator are
authenticated with it. So a service that alters, swaps or moves ciphertexts is found out. ``docs/sealing.md``
describes the envelope, ``docs/sealing-vectors.json`` has test vectors.
"""

from rstore.sealing.envelope import Sealer, key_id_of, new_apply_id, pack, unpack
from rstore.sealing.keys import generate_key
from rstore.sealing.places import Context, EventContext, PairContext, PointContext

__all__ = [
    "Context",
    "EventContext",
    "PairContext",
    "PointContext",
    "Sealer",
    "generate_key",
    "key_id_of",
    "new_apply_id",
    "pack",
    "unpack",
]
