"""Every claim of speed, as a ratio against a named peer or limit: ``make bench``, or ``python -m benchmarks``."""
