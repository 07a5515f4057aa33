"""``python -m rstore.cli``: the command line."""

from __future__ import annotations

from rstore.cli import main

if __name__ == "__main__":
    main()
