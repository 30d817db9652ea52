"""Everything behind `Client`: settings, session, batches, results and recovery."""
