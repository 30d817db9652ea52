"""One driver per key and host: performs what the scheduler decides."""
