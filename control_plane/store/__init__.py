"""The only home of SQL: rows, queries, the outbox."""
