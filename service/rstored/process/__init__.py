"""The process that serves: its sockets, signals, TLS and workers."""
