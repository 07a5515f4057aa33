"""Sealing: the client encrypts values, and binds each of them to the place at which it is stored.

An envelope opens only with the right key *and* at the place for which it was sealed. Namespace, kind and key are in the
derivation of the encryption key. The timestamp of a point, and the timestamp, item and operator of an event, are
authenticated with the ciphertext. So a client detects ciphertexts that the service has altered, swapped or moved.
``docs/sealing.md`` describes the envelope, and ``docs/sealing-vectors.json`` has test vectors.

This room imports from ``calls`` and ``core``.
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
