"""Reads pictures for uploads, and writes result files."""
