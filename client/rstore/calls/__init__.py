"""Every operation as data: what is sent, and how the answer is read. Pure; nothing here does I/O.

Each function of the modules here returns a :class:`Call`. Whoever has one sends its method, target, headers and body,
hands the answer to ``call.reader``, and has a checked result or a :class:`~rstore.StoreError`. The server is not
trusted: an answer of another status, media type or shape than asked for is a :class:`~rstore.StoreProtocolError`.

**Every call may be sent again.** A write carries an id, the same in each attempt, under which the service carries it
out once and answers it alike each time, however late an attempt arrives.
"""

from rstore.calls import es, kv, namespaces, service, tokens, ts
from rstore.calls.call import SPENDING, Call, Head, Reader, Steps, TryAgain

__all__ = [
    "SPENDING",
    "Call",
    "Head",
    "Reader",
    "Steps",
    "TryAgain",
    "es",
    "kv",
    "namespaces",
    "service",
    "tokens",
    "ts",
]
