"""Compute the request limits: the window, reserved polls, and estimates from answers."""
