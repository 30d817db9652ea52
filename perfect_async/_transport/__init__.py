"""Sends single requests and returns their answers. No other package imports httpx."""
