"""The tasks that this process knows, and its creations that are in doubt.

A creation is in doubt if its answer never came, since the task may exist and be charged. Until the
process ends, an equal job on any client gets the same doubt instead of a second task, unless the
caller consents. Running the job in a later process counts as consent, since its user has seen the
first one end. Known tasks are remembered so that none is taken for the lost task of another job,
and so that an id which the vendor gives twice is noticed.

Clients on the network share one memory for each host. A transport of the user's may lead to another
vendor, so its clients share their doubts only within one event loop, and their tasks only while
they are open together.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final
from weakref import WeakKeyDictionary

import attrs

from perfect_async._ledger.rows import SAME_HOST
from perfect_async._recent import Recent
from perfect_async._runtime.spec import JobSpec
from perfect_async._transport.transport import HttpTransport, NetworkTransport
from perfect_async.errors import SubmissionInDoubt, copy_error

_LEAST_TASKS: Final = 5_000
"""More than a key creates in an hour and a half, at 250 requests in 5 minutes. Those of a journal
are all known, however many.
"""
_HOSTS: Final = {f"https://{name}": f"https://{other}" for name, other in SAME_HOST.items()}


class KnownTasks:
    """The last 5,000 to 10,000 tasks of this process's jobs; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: Recent[None] = Recent(_LEAST_TASKS)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids

    def add(self, task_id: str) -> None:
        """Remember a task."""
        with self._lock:
            self._ids.put(task_id, None)


class Doubts:
    """The creations in doubt of one key; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By identity. The URL tells apart two jobs whose identity leaves out its signature.
        self._errors: dict[str, list[tuple[str | None, SubmissionInDoubt]]] = {}

    def find(self, spec: JobSpec) -> SubmissionInDoubt | None:
        """Return a copy of the doubt of a job that equals `spec`; None if there is none."""
        with self._lock:
            for url, error in self._errors.get(spec.identity, ()):
                if _may_equal(url, _url(spec)):
                    return copy_error(error)
        return None

    def add(self, spec: JobSpec, error: SubmissionInDoubt) -> None:
        """Remember that the creation of `spec` is in doubt."""
        self.discard(spec)
        error = copy_error(error)
        # Its cause may hold a picture in memory.
        error.__cause__ = error.__context__ = None
        with self._lock:
            self._errors.setdefault(spec.identity, []).append((_url(spec), error))

    def discard(self, spec: JobSpec) -> None:
        """Forget the doubt of `spec`, whose task was found or whose caller consents to another."""
        with self._lock:
            left = [
                (url, error)
                for url, error in self._errors.pop(spec.identity, [])
                if not _may_equal(url, _url(spec))
            ]
            if left:
                self._errors[spec.identity] = left


def _url(spec: JobSpec) -> str | None:
    """Return the URLs that tell jobs of one identity apart; None if equal identities are enough."""
    urls = [source for source in spec.sources if isinstance(source, str)]
    return None if spec.sure or not urls else " ".join(urls)


def _may_equal(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


@attrs.frozen
class ProcessMemory:
    """The memory of the clients on one key and host.

    `network`: whether they reach the host by a transport of this package.
    """

    tasks: KnownTasks = attrs.field(factory=KnownTasks)
    doubts: Doubts = attrs.field(factory=Doubts)
    network: bool = False


_network_tasks: Final[dict[str, KnownTasks]] = {}
"""By host, since a vendor gives each id once for all keys."""
_network_doubts: Final[dict[tuple[str, str], Doubts]] = {}
_loop_doubts: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Doubts]] = (
    WeakKeyDictionary()
)
_opening: Final = threading.Lock()


def memory_for(identity: tuple[str, str], transport: HttpTransport | None) -> ProcessMemory:
    """Return the memory for a key (hashed) on a host, for clients with `transport` in this loop."""
    key, host = identity
    host = _HOSTS.get(host, host)
    account = key, host
    with _opening:
        if transport is None or isinstance(transport, NetworkTransport):
            doubts = _network_doubts.setdefault(account, Doubts())
            tasks = _network_tasks.setdefault(host, KnownTasks())
            return ProcessMemory(tasks, doubts, network=True)
        accounts = _loop_doubts.setdefault(asyncio.get_running_loop(), {})
        return ProcessMemory(doubts=accounts.setdefault(account, Doubts()))
