"""Decide which request leaves next and when to wake, without any I/O.

`Scheduler.receive(event, now)` changes its state; `due(now)` and `wakes_at(now)` only answer.
"""

from __future__ import annotations

from perfect_async.scheduler._job import IllegalEvent
from perfect_async.scheduler._scheduler import NEVER, Scheduler

__all__ = ["NEVER", "IllegalEvent", "Scheduler"]
