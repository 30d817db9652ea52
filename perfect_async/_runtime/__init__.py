"""One driver per key and host, which performs the commands of the scheduler."""
