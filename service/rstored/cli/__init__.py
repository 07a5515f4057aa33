"""The command ``rstored``: one module for each of its commands."""
