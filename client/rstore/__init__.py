"""The rstore SDK."""
