"""Pickles of harmless types: made so that they can be read, and read without trusting whoever made them.

Unpickling is code execution, and neither the service nor everybody who may write to a store should run code in
everybody who reads it. So no pickle reaches Python's unpickler, whether it was sealed or not. :func:`loads` runs it on
a small machine of its own, whose whole instruction set is what protocol 5 makes of harmless types, and in which a name
means a row of the table below or nothing:

* Nothing is imported, looked up by attribute, given state (``BUILD``) or made without its constructor
  (``NEWOBJ``). ``REDUCE`` calls no class: it calls the row's function here, which takes only arguments of the shape
  that the type's own ``__reduce__`` produces.
* Memory stays in proportion to the pickle: every instruction makes one object of the size of its operands, what
  constructors copy out of shared operands is added up and bounded, and so is the number of objects.
* Time does too. Only hashing and constructing can cost more than the bytes that ask for it (nested tuples that share
  their parts, keys chosen to collide), so a composite key is measured before it is hashed, and both are held to an
  allowance of CPU time that grows with the size of the pickle.

:func:`dumps` makes nothing that :func:`loads` would refuse: the pickler takes the types of the table and no others, and
the machine reads each pickle once before anybody stores it. With ``trusted=True`` both also take what Python's own
pickler and unpickler take.
"""

from rstore.pickles.reading import loads
from rstore.pickles.writing import dumps

__all__ = ["dumps", "loads"]
