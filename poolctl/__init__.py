"""The command line: looks at settings, database and fleet, and changes schema and deployment.

poolctl config     the effective settings and where each came from
poolctl check      database, Redis, limits and schema, as a process would find them
poolctl plan       how many connections the fleet takes, and what to do when they are too many
poolctl deploy     write how compose starts the fleet, and put it in force
poolctl jobs       what waits and runs, and what ended without success
poolctl migrate    bring the schema up to date
poolctl up         a whole fleet on this machine
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"  # also change: pyproject.toml
