"""Sandboxes, clients and jobs for the tests of driver, client and batch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx

from perfect_async import Avatar, Client, Job, Smile
from perfect_async._transport.transport import HttpTransport
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait

KEY = "sandbox-key-1234567890"
FACE = portrait(1, size=96)
STYLE = "male_studio_00"
EIGHT = {"ai-smile": Durations.fixed(8.0), "ai-avatar": Durations.fixed(40.0)}


def vendor(*, faults: Faults | None = None, **settings: object) -> Sandbox:
    """Make a sandbox with a round trip of 150 to 200 ms; a smile takes 8 s, an avatar 40 s."""
    return Sandbox(
        **{  # type: ignore[arg-type]
            "latency": 0.15,
            "jitter": 0.05,
            "durations": EIGHT,
            "faults": faults,
            **settings,
        }
    )


def client(sandbox: Sandbox, **settings: object) -> Client:
    """Make a client of `sandbox`, unopened."""
    given = {"transport": sandbox.transport(), **settings}
    return Client(KEY, **given)  # type: ignore[arg-type]


def smile(number: int = 0) -> Smile:
    """Make a smile of a picture at a URL, which needs no upload."""
    return Smile(f"https://pictures.example/{number}.jpg", key=str(number))


def smiles(count: int) -> Iterator[Smile]:
    """Yield `count` smiles."""
    return (smile(number) for number in range(count))


async def later(jobs: Iterator[Job]) -> AsyncIterator[Job]:
    """Yield `jobs` from an async generator."""
    for job in jobs:
        await asyncio.sleep(0)
        yield job


def avatar(pictures: int = 4, key: str | None = None) -> Avatar:
    """Make an avatar of a picture at a URL."""
    url = "https://pictures.example/a.jpg"
    return Avatar(url, template_id=STYLE, output_count=pictures, key=key)


def clock() -> float:
    """Return the loop's time in seconds."""
    return asyncio.get_running_loop().time()


class Between(httpx.AsyncBaseTransport):
    """A transport that asks `change` for an answer first; if that is None, `inner` answers."""

    def __init__(
        self,
        inner: HttpTransport,
        change: Callable[[httpx.Request], Awaitable[httpx.Response | None]],
    ) -> None:
        self._inner = inner
        self._change = change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        changed = await self._change(request)
        return await self._inner.handle_async_request(request) if changed is None else changed
