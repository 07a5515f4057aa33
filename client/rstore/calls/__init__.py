"""Every operation of the service as data: what to send, and how to read the answer. Nothing here does I/O.

Each function of the modules here returns a :class:`Call`. Whoever has a call sends its method, target, headers and
body, and hands the answer to ``call.reader``, which returns a checked result or raises a :class:`~rstore.StoreError`.
The service is not trusted: an answer of another status, media type or shape is a
:class:`~rstore.StoreProtocolError`.

**Every call may be sent again**, unless it says that it is not ``repeatable``. A write carries an id, the same in each
attempt. The service carries the write out once and answers each attempt alike, however late it arrives.

This room imports from ``core``.
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
