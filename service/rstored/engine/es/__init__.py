"""Event sequences: what each operation means.

A sequence is a record. Its head counts; lane 0 holds its events, in order of timestamp and item, and by item; lane 1
holds one row for each item that is present, with what its current chain of events (see :mod:`rstore.core.folding`)
comes to. So the current state, and an apply that follows the last one, cost what the state costs, however long the
history. A chain whose events are all JSON is *plain* and is folded here, event by event as they come; any other is
*sealed* to the service, which follows its operators' names and hands its events out.

The events of a sequence are all sealed, or none is: no client could read a mix. Only a sequence from before this rule
may hold one; it can still be read, pruned and written to.

History is only ever appended to, except by an apply in the past and by prune. Both change ``Meta.rewrites``, so that
a reader that needs more than one query knows whether what it read belongs together. Resealing an event changes the
bytes of its sealed value and leaves it the same event.
"""

from rstored.engine.es.sequences import EventSequences

__all__ = ["EventSequences"]
