"""Event sequences: what each operation means.

A sequence is a record. Its head has the counts. Lane 0 has its events, in order of timestamp and item, and also in
order of item. Lane 1 has one row for each item that is present, with the result of its current chain of events (see
:mod:`rstore.core.folding`). So reading the current state, and an apply after the last event, cost only what the state
costs, however long the history is. A chain whose events are all JSON is *plain*. The service folds it, one event at a
time as they arrive. The service cannot fold any other chain: it follows the names of the operators, and hands the
events to the client.

Either all events of a sequence are sealed, or none is, because no client could read a mix. Only a sequence that is
older than this rule may hold a mix. It can still be read, pruned and written to.

Writes append to the history. Only an apply in the past and prune change it. Both change ``Meta.rewrites``, so a reader
that needs several queries can see whether their answers belong together. Resealing an event changes the bytes of its
sealed value, but not the history.
"""

from rstored.engine.es.sequences import EventSequences

__all__ = ["EventSequences"]
