"""The database of the fleet: opening it, its models and migrations, and what the server says of itself."""

from __future__ import annotations

from db.database import Database, open_database
from db.errors import DatabaseError
from db.schema import migrate
from db.server import ServerReport, connect, read_server

__all__ = ["Database", "DatabaseError", "ServerReport", "connect", "migrate", "open_database", "read_server"]
