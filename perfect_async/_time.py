"""Time in integer microseconds, and the slots in which polls are planned."""

from __future__ import annotations

from typing import Final

SECOND: Final = 1_000_000
"""Microseconds in a second."""
NEVER: Final = 2**63 - 1
"""Later than any time: only an event can wake the scheduler."""
SLOT: Final = 50_000
"""The length of a slot: waiting for one is not felt, and a wake-up still lands in it."""
