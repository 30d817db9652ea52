"""The vendor's HTTP API without I/O: builds its requests and reads its answers."""
