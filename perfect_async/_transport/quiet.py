"""What httpx and its parts must not say about our requests.

"httpx" tells every URL in full at INFO, "httpcore" the headers of answers at DEBUG, and "hpack"
(for HTTP/2, on a transport that the user brings) the `Authorization` header at DEBUG. Signed URLs
and the key belong into no log. Driving httpx's transports without its client would silence only the
first, and leave the proxies of the environment to us. So the client stays, and a filter on these
loggers drops what is said while a request of ours is being sent or read, which a context variable
tells. The application's own use of httpx, in other tasks or in this one between two steps of ours,
is logged as ever.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final

# One by one: a filter on "httpcore" would not see what its children say.
_LOUD: Final = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "hpack.hpack",
    "hpack.table",
)
_ours: Final = ContextVar("perfect_async_request", default=False)


def keep_quiet() -> None:
    """Put the filter in place. Doing it again does nothing."""
    for name in _LOUD:
        logging.getLogger(name).addFilter(_unless_ours)


class quiet:  # noqa: N801 - used as `contextlib.suppress` is; a generator would cost as much again
    """While in here, nothing is said. Never to be held across a `yield`: that runs other code."""

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> None:
        self._token = _ours.set(True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _ours.reset(self._token)


def _unless_ours(_: logging.LogRecord) -> bool:
    return not _ours.get()
