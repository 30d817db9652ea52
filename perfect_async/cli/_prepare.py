"""Before anything is bought: ask for the balance, say what will be done, and ask whether to."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import anyio
import attrs

from perfect_async.cli._inputs import Entry, Found, Picture, Skipped
from perfect_async.cli._manifest import Manifest, Plan, leave_out_results
from perfect_async.cli._outage import Outage
from perfect_async.cli._plan import Order, cost_of, equal_text, estimate_seconds, look_at_all
from perfect_async.errors import ApiError, ConfigurationError, PerfectError, Unauthorized, quoted
from perfect_async.models import Job, Smile

if TYPE_CHECKING:
    from perfect_async import Client
    from perfect_async.cli._display import Display

T = TypeVar("T")

_BALANCE_WITHIN: Final = 5.0
"""Seconds after which a run goes on without knowing the balance, where the vendor is reached."""
_REACHED_WITHIN: Final = 1.0
_SENT_WITHIN: Final = 1.0
_LOOK_EVERY: Final = 0.25
_SHOWN: Final = 10
_LONGEST_ANSWER: Final = 1024


@attrs.frozen
class Work:
    """What a run is to do: the jobs to buy and those that are there, and what cannot be sent.

    `entries` are the pictures of all of them but those that were skipped.
    """

    plan: Plan
    order: Order
    refused: list[tuple[Job, PerfectError]]
    entries: list[Entry]


def work_out(
    found: Found,
    make_job: Callable[[Picture], Job],
    manifest: Manifest,
    display: Display,
    *,
    again: bool,
    fit: bool,
    max_units: float | None,
) -> Work:
    """Look at all pictures, sort them by what is to be done, and name those that are skipped.

    Nothing is sent and nothing is written. Raises `ConfigurationError` where only results of former
    runs are named, and `JobRefused` for options that no job can have.
    """
    kept, left_out = leave_out_results(found.pictures, manifest)
    if left_out:
        display.message(f"{len(left_out)} of the pictures are results of former runs: left out.")
    if not kept:
        raise ConfigurationError("all pictures are results of former runs: pass another --out.")
    known = set(kept)
    entries = [entry for entry in found.entries if entry.picture in known]
    with display:
        step = counting(display, len(entries), time.monotonic)
        job_type = type(make_job(entries[0].picture))
        looked = look_at_all(entries, job_type, fit=fit, on_step=step)
        display.wait_for(None)
    plan = manifest.plan(
        [_job_of(entry, make_job) for entry in looked.entries],
        token=secrets.token_hex(8),
        again=again,
        fit=fit,
        digests=looked.digests,
    )
    refused: list[tuple[Job, PerfectError]] = [
        *((_job_of(entry, make_job), error) for entry, error in looked.refused),
        *plan.refused,
    ]
    skipped = [*found.skipped, *looked.skipped]
    say_skipped(display, skipped, looked.equal)
    say_folders(display, found.folders)
    say_there(display, plan)
    for job, error in refused:
        display.refused(job, error)
    order = Order(
        *(len(plan.jobs), len(plan.there), len(refused), skipped, len(looked.equal)),
        units=cost_of(plan.jobs, looked.digests),
        seconds=estimate_seconds(plan.jobs),
        max_units=max_units,
        turned=sum(job.source in looked.turned for job in plan.jobs),
    )
    return Work(plan, order, refused, entries)


def work_of(job: Job, display: Display, *, fit: bool, max_units: float | None) -> Work:
    """Look at the inputs of one job, which is bought whatever is in the folder of results.

    Nothing is sent and nothing is written. How long it takes is not estimated.
    """
    sources = [each.source for each in job.inputs]
    local = [Entry(source) for source in sources if isinstance(source, Path | str)]
    looked = look_at_all(local, type(job), fit=fit)
    refused: list[tuple[Job, PerfectError]] = [(job, error) for _, error in looked.refused]
    for _, error in refused:
        display.refused(job, error)
    jobs = [] if refused else [job]
    order = Order(
        *(len(jobs), 0, len(refused[:1]), list[Skipped](), 0),
        units=job.units,
        seconds=None,
        max_units=max_units,
        priced=job.priced,
        turned=len(looked.turned),
    )
    return Work(Plan(jobs, [], []), order, refused[:1], [])


def _job_of(entry: Entry, make_job: Callable[[Picture], Job]) -> Job:
    job = make_job(entry.picture)
    # Every feature is an attrs class with a key; the base class is not.
    return job if entry.key is None else attrs.evolve(cast("Smile", job), key=entry.key)


class Declined(Exception):
    """The question at the terminal was answered by no."""


def say_skipped(
    display: Display, skipped: Sequence[Skipped], equal: Sequence[tuple[Picture, Picture]]
) -> None:
    """Name the pictures that are not sent, and those that are the same as others."""
    lines = [f"skipped: {each.message}" for each in skipped]
    _say(display, lines, "were skipped")
    _say(display, [equal_text(each) for each in equal], "are the same as others")


def say_folders(display: Display, folders: Mapping[str, tuple[int, int]]) -> None:
    """Say what folders hold that is not looked at: subfolders, and files that are no pictures."""
    for folder, (deeper, others) in folders.items():
        parts: list[str] = []
        if deeper:
            are = "1 subfolder is" if deeper == 1 else f"{deeper} subfolders are"
            pattern = quoted(str(Path(folder, "**", "*")))
            parts.append(f"{are} not searched: use {pattern}")
        if others:
            are = "1 file is no picture" if others == 1 else f"{others} files are no pictures"
            parts.append(f"{are} by the name")
        display.message(f"{quoted(folder)}: {'; '.join(parts)}.")


def say_there(display: Display, plan: Plan) -> None:
    """Say which results of a former run differ from what this run would buy."""
    for number, how, other in (
        (plan.unfitted, "as they were before", "fitted"),
        (plan.fitted, "made to fit", "as they are"),
    ):
        if number:
            were = "was" if number == 1 else "were"
            how_one = how.replace("they were", "it was") if number == 1 else how
            one = other.replace("they are", "it is") if number == 1 else other
            them = "it" if number == 1 else "them"
            display.message(f"{number} {were} bought {how_one}; --again buys {them} {one}.")
    if plan.copies:
        display.message(
            f"{len(plan.copies)} of the results {'is' if len(plan.copies) == 1 else 'are'} gone; "
            "an equal picture's is copied, for no unit."
        )


def _say(display: Display, lines: Sequence[str], what: str) -> None:
    most = len(lines) if display.verbose else _SHOWN
    for line in lines[:most]:
        display.message(line)
    if len(lines) > most:
        display.message(f"{len(lines) - most} more {what}; --verbose names them.")


async def prepare(
    client: Client, display: Display, outage: Outage, work: Work, *, yes: bool
) -> None:
    """Say what will be done; ask on a terminal, where it costs much or the balance is too low.

    Raises `Declined`, `Unauthorized`, and the error of a host that was never reached.
    """
    order = await _asked_for(client, display, outage, work)
    asks = order.needs_consent and not yes and is_interactive()
    # A question needs its plan, also with --quiet.
    (display.error if asks else display.message)(str(order))
    if asks:
        display.ask("Go on? [y/N]")
        answer = await _answer()
        if answer.strip().lower() not in {"y", "yes"}:
            raise Declined


async def _asked_for(client: Client, display: Display, outage: Outage, work: Work) -> Order:
    """Return the order of `work` with the balance and the use of the request window.

    Raises as `ask_balance` does.
    """
    balance = await ask_balance(client, display, outage)
    statistics = client.statistics()
    used = statistics.requests_by_others / max(statistics.window_limit, 1)
    order = attrs.evolve(work.order, balance=balance, used_by_others=used)
    if order.seconds is None:
        return order
    return attrs.evolve(order, seconds=estimate_seconds(work.plan.jobs, statistics.lease))


async def order_now(client: Client, display: Display, work: Work) -> Order:
    """Open `client` only to complete the order of `work`. Raises as `ask_balance` does."""
    async with client:
        return await _asked_for(client, display, Outage(anyio.current_time()), work)


def is_interactive() -> bool:
    """Return whether a question is possible: stdin and stderr are both terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


async def reach(client: Client, display: Display, outage: Outage) -> None:
    """Wait until the vendor answers, a second at most where nothing says that it does not.

    A journal is resumed after that: one that is resumed without a network forgets what was never
    sent. Raises as `ask_balance` does.
    """
    await ask_balance(client, display, outage, within=_REACHED_WITHIN)


async def ask_balance(
    client: Client, display: Display, outage: Outage, within: float = _BALANCE_WITHIN
) -> float | None:
    """Return the balance of units, None where it stays unknown, `within` seconds if all is well.

    Raises `Unauthorized`, and the error of a host that was never reached.
    """
    found: list[float | None] = []

    async def ask() -> None:
        # The run can do its work without knowing the balance.
        with suppress(ApiError):
            try:
                found.append((await client.units()).balance)
            except Unauthorized as exc:
                refused.append(exc)

    refused: list[Unauthorized] = []
    what = "the vendor's answer about the balance"
    await _watched(client, ask, display, outage, what, within)
    if refused:
        raise refused[0]
    return found[0] if found else None


async def answer_of(client: Client, ask: Callable[[], Awaitable[T]]) -> T:
    """Open `client`, and return what `ask` asks; say what it waits for.

    Raises what `ask` raises, and the error of a host that was never reached.
    """
    from perfect_async.cli._display import Display

    answers: list[T] = []
    failures: list[PerfectError] = []

    async def keep() -> None:
        try:
            answers.append(await ask())
        except PerfectError as exc:
            failures.append(exc)

    with Display("nothing") as display:
        async with client:
            outage = Outage(anyio.current_time())
            await _watched(client, keep, display, outage, "the vendor's answer", math.inf)
    if failures:
        raise failures[0]
    return answers[0]


async def _watched(  # noqa: PLR0917 - one caller for each way to wait
    client: Client,
    ask: Callable[[], Awaitable[None]],
    display: Display,
    outage: Outage,
    what: str,
    within: float,
) -> None:
    """Await `ask`, for `within` seconds if all is well, and say what it waits for.

    Raises the error of a host that was never reached.
    """
    began = anyio.current_time()
    given_up: PerfectError | None = None

    async def run(scope: anyio.CancelScope) -> None:
        await ask()
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run, group.cancel_scope)
        while given_up is None:
            await anyio.sleep(_LOOK_EVERY)
            now, statistics = anyio.current_time(), client.statistics()
            sent = any(statistics.requests.values())
            # A full request window holds a question back for minutes.
            most = within if sent else min(within, _SENT_WITHIN)
            if now >= began + most and (statistics.reached or statistics.last_failure is None):
                if sent or within < math.inf:
                    break
                what = "the request window"
            if now >= began + 1:
                usual = f"waiting for {what}" if display.is_live or not sent else None
                display.wait_for(outage.look(now, statistics) or usual)
            given_up = outage.end(now, statistics)
        group.cancel_scope.cancel()
    display.wait_for(None)
    if given_up is not None:
        raise given_up


async def _answer() -> str:
    """Read a line from the terminal; no answer is an empty one.

    `input` in a thread of a pool would not do: the interpreter would wait for it after Ctrl-C.
    """
    answered = anyio.Event()
    loop = asyncio.get_running_loop()
    lines: list[str] = []

    def read() -> None:
        lines.append(read_line())
        # After Ctrl-C the loop may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(answered.set)

    threading.Thread(target=read, daemon=True).start()
    await answered.wait()
    return lines[0]


def read_line() -> str:
    """Read a line from stdin, without the lock of its buffer; tests replace this."""
    with suppress(OSError):
        return os.read(sys.stdin.fileno(), _LONGEST_ANSWER).decode("utf-8", "replace")
    return ""


def counting(display: Display, total: int, now: Callable[[], float]) -> Callable[[int], None]:
    """Return what shows how many pictures were looked at, once that takes more than a second."""
    began = now()
    last = [began + 1 - _LOOK_EVERY]

    def step(number: int) -> None:
        at = now()
        if at >= last[0] + _LOOK_EVERY:
            last[0] = at
            display.wait_for(f"looking at the pictures: {number} of {total}")

    return step
