"""A shop with an HTTP API: orders are in PostgreSQL, and stock levels are cached in Redis."""
