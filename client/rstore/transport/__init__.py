"""Sending calls: where to, with what, how often, and for how long.

This room imports from ``calls`` and ``core``. It and the stores are the only parts of the SDK that do I/O, beside the
command line.
"""
