"""PostgreSQL: a store in one schema, a few pooled connections."""

from rstored.backends.postgresql.backend import PostgreSQLBackend

__all__ = ["PostgreSQLBackend"]
