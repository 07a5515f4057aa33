"""From a Python object to what is stored, and back.

This room imports from ``sealing``, ``pickles``, ``calls`` and ``core``.
"""
