"""What the pool costs and gains, measured beside others: speed (engine.py), memory, transactions behind PgBouncer."""
