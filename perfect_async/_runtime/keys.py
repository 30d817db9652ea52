"""Keys: what one may look like, and which driver serves it.

The request window belongs to the key, not to a client, so clients on one key and host share a
driver as long as they live in one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

import attrs

from perfect_async._log import LOG
from perfect_async._runtime.driver import Driver
from perfect_async._transport.transport import HttpTransport, NetworkTransport
from perfect_async.scheduler import Scheduler

KEY_VARIABLE: Final = "YOUCAM_API_KEY"

_drivers: WeakValueDictionary[tuple[str, str, int], Driver] = WeakValueDictionary()
"""Drivers by key (hashed), host and loop."""


def flaw(key: str | None) -> str | None:
    """What is wrong with `key`, None where it can be one.

    Nothing of it is quoted, and nothing is raised here: an error ends up in logs, and a traceback
    may be shown with the locals of its frames.
    """
    problem = None
    if not isinstance(key, str) or not key:
        problem = "is empty" if key == "" else "is missing"
    elif key.lower().startswith("bearer "):
        problem = 'starts with "Bearer ", which the client adds itself'
    elif not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds white space, control or non-ASCII characters"
    return problem and f"The API key {problem}: set {KEY_VARIABLE} or pass api_key."


@attrs.frozen(eq=False)
class _Former:
    """The last ledger of a key in a loop: since when it counts, and on which transport."""

    scheduler: Scheduler
    began: float
    transport: ReferenceType[object] | None


_former: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], _Former]] = (
    WeakKeyDictionary()
)
"""Clients that are opened one after another spend one window: what the last one spent counts."""

_apart: Final[dict[tuple[str, str], _Former]] = {}


def share_past(loop: asyncio.AbstractEventLoop) -> None:
    """`loop` runs in a thread of ours, as those before it did: one clock, and one past."""
    _former[loop] = _apart


def driver_for(
    key: str,
    base_url: str,
    scheduler: Scheduler,
    transport: HttpTransport | None = None,
    past: tuple[tuple[int, int], ...] = (),
) -> Driver:
    """The driver for `key` on `base_url` in this loop; a new one performs for `scheduler`.

    A new one takes over what was spent by the one before it, or else by a former process: `past`
    as (age in microseconds, requests). Only where `transport` is of somebody
    else's making must it be the same: another may lead to another vendor.
    """
    loop = asyncio.get_running_loop()
    who = hashlib.sha256(key.encode()).hexdigest(), base_url
    driver = _drivers.get((*who, id(loop)))
    if driver is not None and driver.alive:
        return driver
    # A list made in one go: another loop's thread may be opening a client just now.
    for found in [reference() for reference in _drivers.valuerefs()]:
        if found is not None and found.alive and found.who == who:
            LOG.warning(
                "This key is in use in another event loop of this process, with a request ledger "
                "of its own: give each its share with Limits().split(n)."
            )
            break
    formers = _former.setdefault(loop, {})
    now, former = loop.time(), formers.get(who)
    reference: ReferenceType[object] | None = None
    if transport is not None and not isinstance(transport, NetworkTransport):
        reference = ref(transport)
    if former is not None and former.transport == reference:
        past = former.scheduler.past(round((now - former.began) * 1_000_000))
    if past:
        scheduler.remember(past)
    formers[who] = _Former(scheduler, now, reference)
    driver = _drivers[(*who, id(loop))] = Driver(scheduler, who)
    return driver
