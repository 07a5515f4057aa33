"""Pickles of harmless types: every pickle that is written can be read, and none is trusted when it is read.

Unpickling runs code, and whoever may write to a store must not run code in those who read it. So no pickle reaches
Python's unpickler, sealed or not. :func:`loads` runs it on a small machine. The machine has only the instructions that
protocol 5 needs for harmless types, and knows only the names in the table of :mod:`rstore.pickles.harmless`:

* It imports nothing, looks up no attribute, sets no state (``BUILD``) and makes no object without a constructor
  (``NEWOBJ``). ``REDUCE`` calls no class. It calls the function in the name's row of the table, which takes only
  arguments of the shape that the type's own ``__reduce__`` makes.
* Memory stays in proportion to the pickle. Every instruction makes one object of the size of its operands, and what
  constructors copy out of shared operands is added up and bounded, as is the number of objects.
* So does time. Only hashing and constructing can cost more than the bytes that ask for them (nested tuples that share
  their parts, keys chosen to collide). So the machine measures a composite key before it hashes it, and both have an
  allowance of CPU time that grows with the size of the pickle.

:func:`dumps` makes nothing that :func:`loads` would refuse: its pickler takes the types of the table and no others, and
the machine reads each pickle once before it is stored. With ``trusted=True`` both also take what Python's own pickler
and unpickler take.

This room imports from ``core``.
"""

from rstore.pickles.reading import loads
from rstore.pickles.writing import dumps

__all__ = ["dumps", "loads"]
