"""Closing under pressure: nested timeouts, forks, and failures that callers want to know about."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import httpx
import pytest

from perfect_async import (
    Client,
    ConfigurationError,
    Smile,
    TaskAbandoned,
    WaitTimeout,
)
from perfect_async.errors import PerfectError
from perfect_async.sandbox import Durations
from tests.support.sandboxed import FACE, Between, avatar, client, clock, smile, smiles, vendor

# Nested timeouts.


async def test_a_second_timeout_does_not_break_the_drain(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two timeouts around a client end its block, and running tasks are kept to their ends."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(100.0)})
    waiting: list[asyncio.Task[object]] = []
    began = clock()

    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(20), asyncio.timeout(10), client(sandbox, drain=300.0) as c:
            waiting.append(asyncio.ensure_future(c.run(smile())))
            await asyncio.sleep(1000)

    assert 100 < clock() - began < 120
    assert 0 == sandbox.ledger.units_wasted
    assert waiting[0].exception() is None
    assert "" == caplog.text


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_a_block_that_is_cancelled_again_drains_once(cancels: int) -> None:
    """A task that is cancelled several times drains once and is cancelled after that."""
    sandbox = vendor()

    async def body() -> None:
        async with client(sandbox, drain=300.0) as c:
            with contextlib.suppress(asyncio.CancelledError):
                await c.run(avatar())
            raise ZeroDivisionError

    task = asyncio.ensure_future(body())
    await asyncio.sleep(3)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(3)
    ended = (await asyncio.gather(task, return_exceptions=True))[0]

    assert (ZeroDivisionError if cancels == 1 else asyncio.CancelledError) is type(ended)
    assert 0 == sandbox.ledger.units_wasted


async def test_the_warning_names_the_real_drain_time(caplog: pytest.LogCaptureFixture) -> None:
    """The warning of a drain that was cut short names the time that it took."""
    c = await client(vendor(), drain=1000).open()
    waiting = asyncio.ensure_future(c.run(avatar()))
    await asyncio.sleep(3)
    closing = asyncio.ensure_future(c.close())
    await asyncio.sleep(4)
    closing.cancel()
    await asyncio.wait([closing, waiting])

    assert "Closing after 4 s of draining" in caplog.text
    assert isinstance(waiting.exception(), TaskAbandoned)


# A fork.


async def test_every_call_after_a_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child process every public call says that the client was opened before the fork."""
    async with client(vendor(), webhook_secret="whsec_" + "A" * 32) as c:
        result = await c.run(smile())
        receiver = c.webhooks
        async with c.batch(smiles(1)) as batch:

            async def templates() -> None:
                assert [template async for template in c.templates()]

            async def history() -> None:
                assert [entry async for entry in c.history()]

            async def enter() -> None:
                async with c.batch([]):
                    pass

            async def deliver() -> None:
                await receiver.deliver(b"", {})

            async def save() -> None:
                await result.save(".")

            async def outcomes() -> None:
                assert [outcome async for outcome in batch]

            waiting: list[Callable[[], Awaitable[object]]] = [
                *(lambda: c.run(smile()), lambda: c.attach(Smile, "t"), templates, c.units, c.open),
                *(
                    lambda: c.estimate([]),
                    lambda: c.delete("t"),
                    history,
                    enter,
                    deliver,
                    save,
                    outcomes,
                ),
                c.close,
            ]
            plain: list[Callable[[], object]] = [
                *(c.statistics, batch.stop, lambda: batch.progress, lambda: c.webhooks),
            ]
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)
                for call in waiting:
                    with pytest.raises(ConfigurationError):
                        await call()
                for ask in plain:
                    with pytest.raises(ConfigurationError, match="before a fork"):
                        ask()
            assert c.statistics().done


async def test_a_batch_is_iterated_in_its_own_loop() -> None:
    """Iterating in another loop raises an error instead of waiting for ever."""
    async with client(vendor()) as c, c.batch(smiles(1)) as batch:

        def elsewhere() -> None:
            with pytest.raises(ConfigurationError, match="another event loop"):
                asyncio.run(anext(batch))

        await asyncio.to_thread(elsewhere)
        assert (await anext(batch)).ok


# The last failure.


def failing(error: Exception) -> Callable[[httpx.Request], Awaitable[None]]:
    """A network that fails every request with an error."""

    async def change(request: httpx.Request) -> None:
        raise error

    return change


REASONS = [
    httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    httpx.ConnectError("[Errno 111] Connection refused"),
    httpx.ProxyError("407 Proxy Authentication Required"),
    httpx.ReadTimeout(""),
]


def unreachable(error: Exception) -> Client:
    """A client on a network that fails every request."""
    sandbox = vendor()
    return client(sandbox, transport=Between(sandbox.transport(), failing(error)))


@pytest.mark.parametrize("error", REASONS, ids=str)
@pytest.mark.parametrize("job", [smile(1), Smile(FACE)], ids=["creation", "registration"])
async def test_a_timeout_names_the_last_failure(error: Exception, job: Smile) -> None:
    """`WaitTimeout` names the last failed request of the job, which is also its cause."""
    async with unreachable(error) as c:
        with pytest.raises(PerfectError) as caught:
            await c.run(job, timeout=5.0)
        if isinstance(error, httpx.ReadTimeout) and job.key is not None:
            return  # The creation is in doubt at once.
        failure = caught.value.__cause__

        assert isinstance(caught.value, WaitTimeout)
        assert isinstance(failure, PerfectError)
        assert f"The last request failed: {failure.message}" in str(caught.value)


async def test_a_timeout_without_a_failure_names_none() -> None:
    """`WaitTimeout` names only the time if the last request was answered."""
    async with client(vendor()) as c:
        with pytest.raises(WaitTimeout, match=r"after 3 s\. ") as caught:
            await c.run(smile(), timeout=3.0)
    assert "failed" not in caught.value.message
    assert None is caught.value.__cause__


async def test_a_failed_poll_is_named_until_it_is_answered() -> None:
    """`WaitTimeout` names a failed poll until another poll is answered."""
    down = True

    async def change(request: httpx.Request) -> None:
        if down and "/ai-smile/" in request.url.path:
            raise httpx.ConnectError("[Errno 111] Connection refused")

    sandbox = vendor(durations={"ai-smile": Durations.fixed(60.0)})
    async with client(sandbox, transport=Between(sandbox.transport(), change)) as c:
        with pytest.raises(WaitTimeout, match="last request failed"):
            await c.run(smile(1), timeout=9.5)
        down = False
        with pytest.raises(WaitTimeout) as caught:
            await c.run(smile(1), timeout=9.5)
    assert None is caught.value.__cause__
