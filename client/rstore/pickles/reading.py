"""Reading pickles."""

from __future__ import annotations

import pickle

from rstore.core.errors import StoreEncodingError, StoreError
from rstore.core.memory import Spend, free
from rstore.pickles.harmless import Refusal
from rstore.pickles.machine import MEMORY_PER_BYTE, Machine


def loads(data: bytes, *, trusted: bool, spend: Spend = free) -> object:
    """The value of a pickle. It calls ``spend`` with the bytes of memory that it is about to take.

    ``trusted`` runs Python's own unpickler, and so all code that the pickle names. Otherwise the machine makes only
    objects of the types in the table of :mod:`rstore.pickles.harmless`. Every failure is a
    :class:`StoreEncodingError`. For a type that is not in the table it names the type and the remedy.

    >>> import enum, pickle
    >>> loads(pickle.dumps(enum.Enum), trusted=False)
    Traceback (most recent call last):
    rstore.StoreEncodingError: the pickle holds 'enum.Enum', which is not among the harmless types; ...
    """
    if trusted:
        spend(MEMORY_PER_BYTE * len(data))
        try:
            return pickle.loads(data)  # noqa: S301 - the caller vouches for the pickle
        except Exception as error:
            raise StoreEncodingError(f"the pickle cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        return Machine(data, spend=spend).run()
    except StoreError:
        raise
    except Refusal as refusal:
        reason = str(refusal)
    except Exception as error:
        reason = f"the pickle is malformed ({type(error).__name__})"
    raise StoreEncodingError(
        f"{reason}; open the store with trust_pickle=True to load any pickle, "
        "if you trust everyone who can write to it not to run code here"
    )
