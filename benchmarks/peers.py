"""What people write or use to run many pictures, each at its best.

All are honest little clients over httpx. What they share is kind to them: pictures are registered
80 a call and uploaded before the first task is created (one registration a picture is what people
write, and costs one request more for each), an error fails its own picture and no other, and
results are not downloaded. Where nothing else is said a refusal (429) is an error like any other,
as `raise_for_status` has it: a poll that was refused ends the waiting for a task that is paid.
"backoff", aiometer with its README's knobs, and aiolimiter send it again. So does the dispatcher,
which knows both limits and the lease and plans for them.

The loop that polls is the vendor's published sample, in asyncio: every 2 s, at most 300 times, any
refusal an error. The sample polls at once; the others sleep first, which saves them one request a
picture.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from heapq import heappop, heappush
from typing import Any
from urllib.parse import quote

import aiometer
import attrs
import httpx
from aiolimiter import AsyncLimiter

from perfect_async.models import FILES_PER_CALL

BASE_URL = "https://yce-api-01.makeupar.com"
TASKS = "/s2s/v2.0/task/ai-smile"
TOO_MANY = 429
ATTEMPTS = 300
POLLED_EVERY = 8.0


class Ended(Exception):
    """A task came to an end without a picture, or the loop gave it up."""


class Api:
    """The calls of a smile, by hand; the other clients send in another way."""

    def __init__(self, transport: httpx.AsyncBaseTransport, seed: int) -> None:
        del seed  # for those that draw
        key = {"Authorization": "Bearer a-key"}
        self._http = httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=key)
        # The presigned URLs must not see the key.
        self._storage = httpx.AsyncClient(transport=transport)

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._storage.aclose()

    async def once(self, method: str, path: str, body: object) -> httpx.Response:
        """One request, whatever the answer."""
        return await self._http.request(method, path, json=body)

    async def send(self, method: str, path: str, body: object) -> httpx.Response:
        """One request, and what is done about a refusal."""
        return await self.once(method, path, body)

    async def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        response = await self.send(method, path, body)
        response.raise_for_status()
        return response.json()["data"]

    async def upload(self, pictures: Sequence[bytes]) -> list[str]:
        """Register and upload; the `file_id` of each picture."""
        ids: list[str] = []
        for first in range(0, len(pictures), FILES_PER_CALL):
            chunk = pictures[first : first + FILES_PER_CALL]
            described = [
                {"content_type": "image/jpeg", "file_name": "me.jpg", "file_size": len(picture)}
                for picture in chunk
            ]
            files = (await self.call("POST", "/s2s/v2.0/file", {"files": described}))["files"]
            await asyncio.gather(*map(self._put, files, chunk))
            ids += [file["file_id"] for file in files]
        # The vendor counts a second of its own; the first creations must not fall into this one.
        await asyncio.sleep(1)
        return ids

    async def _put(self, file: dict[str, Any], picture: bytes) -> None:
        [to] = file["requests"]
        response = await self._storage.request(
            to["method"], to["url"], headers=to["headers"], content=picture
        )
        response.raise_for_status()

    async def create(self, file_id: str) -> str:
        """Create the task; its id."""
        body = {"src_file_id": file_id, "expression_type": "smile_with_teeth_visible"}
        task_id: str = (await self.call("POST", TASKS, body))["task_id"]
        return task_id

    async def result(self, task_id: str) -> str | None:
        """Poll once; the picture's URL, or None while the task runs."""
        data = await self.call("GET", f"{TASKS}/{quote(task_id, safe='')}")
        if data["task_status"] == "error":
            raise Ended(f"task failed: {data['error']}")
        url: str | None = data["results"]["url"] if data["task_status"] == "success" else None
        return url


class BackingOff(Api):
    """Exponential backoff with full jitter on a 429: up to 1, 2, 4 ... 60 s, ten times."""

    def __init__(self, transport: httpx.AsyncBaseTransport, seed: int) -> None:
        super().__init__(transport, seed)
        self._rng = random.Random(seed)

    async def send(self, method: str, path: str, body: object) -> httpx.Response:
        for attempt in range(10):
            response = await self.once(method, path, body)
            if response.status_code != TOO_MANY:
                return response
            await asyncio.sleep(self._rng.uniform(0, min(60, 2**attempt)))
        return await self.once(method, path, body)


class Limited(BackingOff):
    """Every try under both of the vendor's limits with aiolimiter, and backoff beside it.

    A limiter lets its whole rate through in a burst and refills while that goes on, so that twice
    the rate may pass in one period: its documentation says so, hence the backoff.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, seed: int) -> None:
        super().__init__(transport, seed)
        self._window, self._second = AsyncLimiter(250, 300), AsyncLimiter(5, 1)

    async def once(self, method: str, path: str, body: object) -> httpx.Response:
        async with self._window, self._second:
            return await super().once(method, path, body)


class Even(BackingOff):
    """Every try under the limiter that its documentation gives against bursts: 1 in 1.2 s."""

    def __init__(self, transport: httpx.AsyncBaseTransport, seed: int) -> None:
        super().__init__(transport, seed)
        self._limiter = AsyncLimiter(1, 300 / 250)

    async def once(self, method: str, path: str, body: object) -> httpx.Response:
        async with self._limiter:
            return await super().once(method, path, body)


async def sampled(api: Api, file_id: str) -> str:
    """The vendor's sample: create, then ask at once and every 2 s, at most 300 times."""
    task_id = await api.create(file_id)
    for _ in range(ATTEMPTS):
        if (url := await api.result(task_id)) is not None:
            return url
        await asyncio.sleep(2)
    raise Ended("max attempts exceeded while polling")


async def polled(interval: float, api: Api, file_id: str) -> str:
    """Create, then sleep and ask, at most 300 times."""
    task_id = await api.create(file_id)
    for _ in range(ATTEMPTS):
        await asyncio.sleep(interval)
        if (url := await api.result(task_id)) is not None:
            return url
    raise Ended("max attempts exceeded while polling")


# One picture: its URL, or the error that ended it.
Job = Callable[[str], Awaitable[str | Exception]]
Ends = list[str | Exception]


async def in_turn(job: Job, ids: Sequence[str]) -> Ends:
    """One after another, as a program without concurrency does."""
    return [await job(file_id) for file_id in ids]


async def gathered(job: Job, ids: Sequence[str]) -> Ends:
    """All at once."""
    return await asyncio.gather(*map(job, ids))


async def in_semaphore(at_once: int, job: Job, ids: Sequence[str]) -> Ends:
    """At most `at_once` pictures at a time."""
    semaphore = asyncio.Semaphore(at_once)

    async def one(file_id: str) -> str | Exception:
        async with semaphore:
            return await job(file_id)

    return await asyncio.gather(*map(one, ids))


async def metered(per_second: float, at_once: int | None, job: Job, ids: Sequence[str]) -> Ends:
    """As aiometer's README starts: a function, its arguments, and both knobs."""
    async with aiometer.amap(job, ids, max_at_once=at_once, max_per_second=per_second) as ends:
        return [end async for end in ends]


@attrs.frozen
class Peer:
    """A client, what it does with one picture, and how it does that with many."""

    name: str
    api: Callable[[httpx.AsyncBaseTransport, int], Api]
    one: Callable[[Api, str], Awaitable[str]]
    many: Callable[[Job, Sequence[str]], Awaitable[Ends]]

    async def run(
        self,
        transport: httpx.AsyncBaseTransport,
        pictures: Sequence[bytes],
        seed: int,
        start: Callable[[], None],
    ) -> int:
        """Run all pictures to their ends; how many URLs came back."""
        start()
        async with aclosing(self.api(transport, seed)) as api:

            async def job(file_id: str) -> str | Exception:
                try:
                    return await self.one(api, file_id)
                except (httpx.HTTPError, Ended) as error:
                    return error

            ends = await self.many(job, await api.upload(pictures))
        return sum(isinstance(end, str) for end in ends)


# The dispatcher: who knows both limits and the lease writes this.


class Counted(Api):
    """Counts both of the vendor's windows, whatever was answered.

    A request counts from when it leaves until a period after its answer: nobody knows when it
    comes to the vendor.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, seed: int) -> None:
        super().__init__(transport, seed)
        self._under_way = 0
        self._answered: deque[float] = deque(maxlen=250)

    async def once(self, method: str, path: str, body: object) -> httpx.Response:
        self._under_way += 1
        try:
            return await super().once(method, path, body)
        finally:
            self._under_way -= 1
            self._answered.append(asyncio.get_running_loop().time())

    def used(self, now: float, period: float) -> tuple[int, list[float]]:
        """How many count in a period that ends now, and when those were answered that were."""
        recent = [at for at in self._answered if at > now - period]
        return self._under_way + len(recent), recent

    def opens_at(self, now: float) -> float:
        """When the next request may leave; infinity: an answer has to come first."""
        opens = now
        for most, period in ((250, 300.0), (5, 1.0)):
            used, recent = self.used(now, period)
            if (over := used - most) >= 0:
                opens = max(opens, recent[over] + period if over < len(recent) else math.inf)
        return opens


@attrs.frozen
class Dispatcher:
    """One loop that decides what leaves: a poll that is due, or else a creation.

    Both windows are counted exactly. A task is polled every 8 s. A task is created only while the
    window has `keep` free requests for each one that runs, this one included: what they will cost
    until they end, which the user has to know.
    """

    name: str
    keep: int

    async def run(
        self,
        transport: httpx.AsyncBaseTransport,
        pictures: Sequence[bytes],
        seed: int,
        start: Callable[[], None],
    ) -> int:
        """Run all pictures to their ends; how many URLs came back."""
        start()
        async with aclosing(Counted(transport, seed)) as api, asyncio.TaskGroup() as group:
            waiting = deque(await api.upload(pictures))
            loop, news, due = asyncio.get_running_loop(), asyncio.Event(), list[tuple[float, str]]()
            done = running = 0

            async def create(file_id: str) -> None:
                nonlocal running
                try:
                    heappush(due, (loop.time() + POLLED_EVERY, await api.create(file_id)))
                except httpx.HTTPStatusError as error:
                    running -= 1
                    if error.response.status_code == TOO_MANY:
                        waiting.append(file_id)
                news.set()

            async def poll(task_id: str) -> None:
                nonlocal running, done
                following, ended = loop.time() + POLLED_EVERY, True
                try:
                    ended = await api.result(task_id) is not None
                    done += ended
                except httpx.HTTPStatusError as error:
                    ended = error.response.status_code != TOO_MANY
                    # At once, as far as the windows let it: its lease goes on.
                    following = loop.time()
                except Ended:
                    pass
                if ended:
                    running -= 1
                else:
                    heappush(due, (following, task_id))
                news.set()

            while waiting or running:
                now = loop.time()
                opens, polls = api.opens_at(now), bool(due) and due[0][0] <= now
                creates = bool(waiting) and 250 - api.used(now, 300)[0] > self.keep * (running + 1)
                if opens <= now and (polls or creates):
                    running += not polls
                    left = poll(heappop(due)[1]) if polls else create(waiting.popleft())
                    group.create_task(left)
                    # It counts from its first step on.
                    await asyncio.sleep(0)
                    continue
                news.clear()
                # A creation waits for what leaves the window meanwhile, so it is looked at again.
                wakes = opens if polls or creates else due[0][0] if due else math.inf
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), min(wakes - now, 1.0))
        return done


def _semaphore(at_once: int, interval: float, api: Callable[..., Api], name: str) -> Peer:
    return Peer(
        f"{name}semaphore {at_once}, {interval:g} s",
        api,
        partial(polled, interval),
        partial(in_semaphore, at_once),
    )


PEERS: tuple[Peer | Dispatcher, ...] = (
    Peer("vendor's sample, in turn", Api, sampled, in_turn),
    Peer("gather, 2 s", Api, partial(polled, 2), gathered),
    Peer("backoff, gather, 2 s", BackingOff, partial(polled, 2), gathered),
    *(_semaphore(n, interval, Api, "") for n in (4, 5, 10) for interval in (2, 8)),
    *(_semaphore(n, interval, BackingOff, "backoff, ") for n in (4, 5, 10) for interval in (2, 8)),
    # The knobs of the README's first example, and the vendor's limit.
    Peer("aiometer 5/s, 10 at once, 2 s", BackingOff, partial(polled, 2), partial(metered, 5, 10)),
    # The budget of 250 in 300 s over 2.56 requests a picture is 0.325/s: what could be known only
    # afterwards, with a margin of 8 and of 23 %.
    Peer("aiometer 0.3/s, 8 s", Api, partial(polled, 8), partial(metered, 0.3, None)),
    Peer("aiometer 0.25/s, 8 s", Api, partial(polled, 8), partial(metered, 0.25, None)),
    Peer("aiolimiter, gather, 8 s", Limited, partial(polled, 8), gathered),
    _semaphore(5, 8, Limited, "aiolimiter, "),
    # Behind three others at 1.2 s each, a poll that is due after 5 s nearly always leaves in time.
    _semaphore(4, 5, Even, "even aiolimiter, "),
    # 2 is what a smile of 8 s costs; 14 are polls for as long as the default insures, 120 s.
    Dispatcher("dispatcher, keeps 2 a task", 2),
    Dispatcher("dispatcher, keeps 14 a task", 14),
)
