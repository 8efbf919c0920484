"""The command line: looks at settings, database and fleet, and changes the schema.

poolctl config     the effective settings and where each came from
poolctl check      database, Redis, limits and schema, as a process would find them
poolctl migrate    bring the schema up to date
poolctl up         a whole fleet on this machine
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"  # also change: pyproject.toml
