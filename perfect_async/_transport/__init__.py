"""Sends one request and returns one answer. The only package that imports httpx."""
