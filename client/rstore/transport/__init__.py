"""Sending: where to, with what, how often, and with how much patience."""
