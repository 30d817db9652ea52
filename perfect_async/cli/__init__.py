"""The terminal program `perfect-async`."""

from __future__ import annotations

from perfect_async.cli._app import main

__all__ = ["main"]
