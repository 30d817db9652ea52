"""The command `doctor`: look at everything that a run needs, one line each, with what to do.

Nothing is bought, except by `--measure-lease`, which says so before. No line holds the key, nor a
URL with credentials.
"""

from __future__ import annotations

import json as json_
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from perfect_async.cli import _runner
from perfect_async.cli._inputs import find_pictures
from perfect_async.cli._key import key_file
from perfect_async.cli._output import print_error, print_line, printable
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import (
    BadAnswer,
    ConfigurationError,
    PerfectError,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    quoted,
    redacted,
)
from perfect_async.models import ASSUMED_LEASE, Avatar, Units

# `--help` runs none of this, so the client and all that it needs are loaded by the command.
if TYPE_CHECKING:
    import anyio

    from perfect_async import Client
    from perfect_async._ledger.leases import LeaseRecord
    from perfect_async._ledger.rows import LedgerStore, MemberStatus
    from perfect_async.reports import LeaseBracket, Statistics

State: TypeAlias = Literal["ok", "note", "warning", "error"]

_LONGEST: Final = 20.0
"""Seconds for the one request; connecting alone may take 10."""
_AFTER_FAILURE: Final = 3.0
"""Seconds for it to succeed after a failure, which may have been a passing one."""
_LOOKS: Final = 0.25
_SKEW: Final = 60.0
"""Seconds by which the clocks may differ, so that a creation is found in the unit history."""
_INDENT: Final = 18
_MOST_WIDTH: Final = 100
_MOST_MEMBERS: Final = 8
_REQUIREMENT: Final = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w, -]+)\])?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]")


@attrs.frozen
class Check:
    """How one thing stands, and what to do about it; `facts` are for `--json`.

    An "error" prevents work, a "warning" may cost something, a "note" is worth knowing. `text` and
    `hint` may be the library's; they are put in the words of the terminal.
    """

    name: str
    state: State
    text: str = attrs.field(converter=in_terminal_terms)
    hint: str | None = attrs.field(
        default=None, converter=attrs.converters.optional(in_terminal_terms)
    )
    facts: Mapping[str, object] = attrs.field(factory=dict[str, object])

    def as_dict(self) -> dict[str, object]:
        """Return the fields that `--json` prints."""
        return {
            "name": self.name,
            "state": self.state,
            "text": self.text,
            "hint": self.hint,
            **self.facts,
        }


@attrs.frozen
class _Place:
    """The key and the host that commands use; `problem` says why they cannot."""

    key: str = attrs.field(repr=False)
    key_from: str
    key_flaw: str | None
    base_url: str
    problem: str | None


@attrs.frozen
class _Answer:
    """What the one request brought: the units, or an error; neither where it could not leave."""

    units: Units | None
    error: PerfectError | None
    statistics: Statistics


def doctor(
    *,
    json: bool = False,
    measure_lease: bool = False,
    picture: str | None = None,
    template: str | None = None,
    yes: bool = False,
) -> int:
    """Check key, host, units and settings, and print what to do; one request, no unit.

    Exit status: 1 where something prevents work (no key, a refused key, a host that does not
    answer, no units at all), else 0.

    Parameters
    ----------
    json
        Print one line of JSON.
    measure_lease
        Measure how long a running task survives without a poll, for which the vendor's documents
        name four lengths. One avatar is made, for 1 unit at most, and polled after 12, 20 and 40 s
        only.
    picture
        The portrait for that avatar; jpg or png.
    template
        The style of that avatar; by default the first of the list.
    yes
        Spend that unit without asking.
    """
    if measure_lease:
        return _measure(picture, template, yes=yes, json=json)
    if picture is not None or template is not None or yes:
        raise ConfigurationError("--picture, --template and -y are for --measure-lease only.")
    checks = list(examine())
    if json:
        listed = [check.as_dict() for check in checks]
        print_line(json_.dumps({"ok": not _prevents_work(checks), "checks": listed}))
    else:
        for line in _lines(checks):
            print_line(line)
    return _runner.FAILED if _prevents_work(checks) else 0


def examine() -> Iterator[Check]:
    """Look at everything, and yield a check for each thing."""
    place = _place()
    answer, members = None, None
    if place.key_flaw is None and place.problem is None:
        try:
            client = _runner.make_client()
            answer, members = _runner.run(lambda: _ask(client, place))
        except ConfigurationError as exc:
            yield Check("settings", "error", exc.message, "Correct what the message names.")
    yield _key(place, answer)
    yield _host(place, answer)
    if answer is not None:
        yield _units(answer)
        yield _clock(answer.statistics)
        yield _window(answer.statistics, members)
        yield _limits(answer.statistics)
    yield _lease(place, answer)
    yield _state_folder()
    yield _sharing(members)
    yield _extras()


def _place() -> _Place:
    from perfect_async._api.urls import normalised_base
    from perfect_async._client import settings

    given = key_file()
    key = settings.stripped(os.environ.get(settings.KEY_VARIABLE))
    key_from = settings.KEY_VARIABLE
    if given is not None:
        key, key_from = given.key, f"--api-key-file {quoted(given.path)}"
    base_url, problem = os.environ.get(settings.URL_VARIABLE) or settings.BASE_URL, None
    try:
        base_url = normalised_base(base_url)
    except ConfigurationError as exc:
        problem = exc.message
    return _Place(key or "", key_from, settings.key_flaw(key), base_url, problem)


# The request.


async def _ask(client: Client, place: _Place) -> tuple[_Answer, _Members]:
    import anyio

    async with client:
        units: Units | None = None
        error: PerfectError | None = None
        with anyio.move_on_after(_LONGEST) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_watch, client, scope)
                try:
                    units = await client.units()
                except PerfectError as exc:
                    error = exc
                group.cancel_scope.cancel()
        statistics = client.statistics()
        if units is None and error is None:
            error = statistics.last_failure
        return _Answer(units, error, statistics), await _look(place)


async def _watch(client: Client, scope: anyio.CancelScope) -> None:
    """End the wait for an answer soon after a failure."""
    import anyio

    while client.statistics().last_failure is None:  # noqa: ASYNC110 - there is no event for it
        await anyio.sleep(_LOOKS)
    scope.deadline = min(scope.deadline, anyio.current_time() + _AFTER_FAILURE)


@attrs.frozen
class _Members:
    """The other members of the key's ledger; `problem` says why there is none, where that is so.

    `where` is the folder or the server, None where sharing is switched off.
    """

    where: str | None
    members: tuple[MemberStatus, ...] = ()
    problem: str | None = None


async def _look(place: _Place) -> _Members:
    """Join the ledger of the key, as a run does, and return who else is there."""
    import anyio

    from perfect_async._client.settings import UNSET, share
    from perfect_async._ledger.folder import default_folder
    from perfect_async._ledger.local import open_local
    from perfect_async._ledger.rows import LedgerUnavailable, host_digest, key_digest

    setting = share(UNSET, None)
    if setting is None:
        return _Members(None)
    host, digest = host_digest(place.base_url), key_digest(place.key)
    where = "the state folder" if setting.url is None else redacted(setting.url)
    store: LedgerStore
    try:
        if setting.url is not None:
            from perfect_async._ledger.redis import open_redis

            store = await open_redis(setting.url, host, digest)
        else:
            folder = default_folder() if setting.folder is None else Path(setting.folder)
            where = str(folder)
            # The client's own ledger uses the loop's clock as well.
            clock = anyio.current_time
            store = open_local(folder, host, digest, clock=lambda: round(clock() * 1e9))
        try:
            found = await store.members()
        finally:
            await store.aclose()
    except (LedgerUnavailable, ConfigurationError) as exc:
        return _Members(where, problem=str(exc))
    return _Members(where, tuple(one for one in found if one.pid != os.getpid()))


# The checks.


def _key(place: _Place, answer: _Answer | None) -> Check:
    if place.key_flaw is not None:
        return Check(
            "key",
            "error",
            f"The API key {place.key_flaw}.",
            "Set YOUCAM_API_KEY or pass --api-key-file; the vendor's console shows the key.",
        )
    error = None if answer is None else answer.error
    if isinstance(error, Unauthorized):
        text = f"The key in {place.key_from} is refused: {error.message}"
        return Check("key", "error", text, error.hint)
    if answer is None or answer.units is None:
        return Check("key", "note", f"A key is set in {place.key_from}; it was not checked.")
    return Check("key", "ok", f"The key in {place.key_from} is accepted.")


def _host(place: _Place, answer: _Answer | None) -> Check:
    shown = redacted(place.base_url)
    if place.problem is not None:
        hint = "Correct YOUCAM_BASE_URL, or unset it: the vendor's own host is the default."
        return Check("host", "error", place.problem, hint)
    if answer is None:
        return Check("host", "note", f"{shown} was not asked.")
    seen, error = answer.statistics, answer.error
    facts = {"url": shown, "connect": seen.connect, "round_trip": seen.round_trip}
    if isinstance(error, ServiceUnavailable | BadAnswer):
        text = f"{shown}: {error.message}"
        return Check("host", "error", text, _host_hint(error.message), facts)
    if isinstance(error, RateLimited) or (answer.units is None and error is None):
        text = f"{shown}: no request got through; the request window of the key is used up."
        hint = "Wait until the other processes or machines that use the key have ended."
        return Check("host", "warning", text, hint, facts)
    text = f"{shown} answered in {_span(seen.round_trip or 0.0)}"
    if seen.connect is not None:
        text = f"{shown}: connected in {_span(seen.connect)}, {text.removeprefix(shown).strip()}"
    if error is not None and not isinstance(error, Unauthorized):
        return Check("host", "warning", f"{text}, and said: {error.message}", error.hint, facts)
    if _is_clear_text(place.base_url):
        hint = "Use https:// in YOUCAM_BASE_URL: others on the network can read the key."
        return Check("host", "warning", f"{text}, without encryption.", hint, facts)
    return Check("host", "ok", f"{text}.", None, facts)


def _host_hint(reason: str) -> str:
    if "certificate" in reason:
        return (
            "SSL_CERT_FILE names the certificates of a company's own proxy; also look whether this "
            "machine's date is right."
        )
    if "proxy" in reason:
        return "Correct HTTPS_PROXY (or HTTP_PROXY, ALL_PROXY), or exclude the host by NO_PROXY."
    return "Check the network, a firewall or proxy (HTTPS_PROXY), and YOUCAM_BASE_URL if it is set."


def _is_clear_text(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    return scheme == "http" and re.match(r"localhost|127\.|\[::1\]", rest) is None


def _units(answer: _Answer) -> Check:
    units = answer.units
    if units is None:
        return Check("units", "note", "The balance is not known: nothing was answered.")
    facts: dict[str, object] = {"balance": units.balance}
    if units.balance is None:
        text = "The balance is not known: the vendor names no grants."
        return Check("units", "note", text, "The vendor's console shows it.", facts)
    if units.balance <= 0:
        hint = "Buy units for the API in the vendor's console; those of its apps do not count."
        return Check("units", "error", "There are no units that the API can spend.", hint, facts)
    ends = [grant.expires_at for grant in units.grants if grant.expires_at is not None]
    text = f"{units.balance:g} {'unit' if units.balance == 1 else 'units'}"
    if ends:
        text += f"; the first grant ends on {min(ends):%Y-%m-%d}"
    return Check("units", "ok", f"{text}.", None, facts)


def _clock(seen: Statistics) -> Check:
    skew = seen.clock_skew
    facts: dict[str, object] = {"skew": skew}
    if skew is None:
        return Check("clock", "note", "The vendor's clock is not known.", None, facts)
    side = "ahead of" if skew >= 0 else "behind"
    # The vendor's header counts whole seconds.
    if abs(skew) <= 1:
        return Check("clock", "ok", "The vendor's clock and this machine's agree.", None, facts)
    text = f"The vendor's clock is {_span(abs(skew))} {side} this machine's."
    if abs(skew) <= _SKEW:
        return Check("clock", "ok", text, None, facts)
    hint = (
        "Let this machine set its clock (NTP): a creation without an answer is not found in the "
        "unit history, and notifications of webhooks are refused from 300 s on."
    )
    return Check("clock", "warning", text, hint, facts)


def _window(seen: Statistics, found: _Members | None) -> Check:
    members = () if found is None else found.members
    others = [
        {
            "pid": one.pid,
            "waiting": one.work,
            "running": one.running,
            "age": round(one.age / 1e6, 1),
        }
        for one in members
    ]
    facts: dict[str, object] = {
        "requests": seen.requests_in_window,
        "by_others": seen.requests_by_others,
        "limit": seen.window_limit,
        "others": others,
    }
    period = seen.limits.period
    text = f"{seen.requests_in_window} of {seen.window_limit} requests are counted in {period:g} s"
    if seen.requests_by_others:
        text += f", {seen.requests_by_others} of them by earlier runs or other processes"
    if not members:
        return Check("window", "ok", f"{text}; no other process uses the key now.", None, facts)
    named = [
        f"pid {one.pid} ({one.work} waiting, {one.running} running, wrote {_span(one.age / 1e6)} "
        "ago)"
        for one in members[:_MOST_MEMBERS]
    ]
    more = len(members) - len(named)
    text += f"; other processes on the key: {', '.join(named)}"
    return Check("window", "ok", f"{text}{f' and {more} more' if more else ''}.", None, facts)


def _limits(seen: Statistics) -> Check:
    limits = seen.limits
    facts: dict[str, object] = {
        "requests": limits.requests,
        "period": limits.period,
        "per_second": limits.per_second,
        "assumed": seen.window_limit,
    }
    text = f"{limits.requests} requests per {limits.period:g} s, {limits.per_second} per second"
    if seen.window_limit < limits.requests:
        text += f"; {seen.window_limit} are assumed, since the vendor refused more"
        hint = "Something that does not share the ledger uses the key, or the limits are smaller."
        return Check("limits", "warning", f"{text}.", hint, facts)
    return Check("limits", "ok", f"{text}.", None, facts)


def _lease(place: _Place, answer: _Answer | None) -> Check:
    from perfect_async._ledger.leases import LeaseFile

    in_force = ASSUMED_LEASE if answer is None else answer.statistics.lease
    text = f"Tasks are polled for a lease of {in_force:g} s"
    facts: dict[str, object] = {"lease": in_force, "measured": None}
    measure = "`perfect-async doctor --measure-lease --picture FILE` measures it, for 1 unit."
    record = None
    if place.key_flaw is None and place.problem is None:
        record = LeaseFile(place.base_url, place.key).read()
    if record is None:
        text += ", the shortest that the documents name; nothing was measured."
        return Check("lease", "note", text, measure, facts)
    facts["measured"] = {
        "survived": record.survived,
        "lost": record.lost,
        "at": record.measured_at.isoformat(),
        "refuted": record.refuted,
        "lease": record.lease,
    }
    text += f". Measured on {record.measured_at:%Y-%m-%d}: {_measured(record)}."
    if record.refuted:
        text += " Since then a task was lost inside that, so it is not used."
        return Check("lease", "warning", text, measure, facts)
    return Check("lease", "ok", f"{text} {_use(record.lease)}", None, facts)


def _measured(found: LeaseRecord | LeaseBracket) -> str:
    if found.lost is None:
        return f"a running task survived {found.survived:g} s without a poll"
    if not found.survived:
        return f"a running task was lost within {found.lost:g} s without a poll"
    return (
        f"a running task survived {found.survived:g} s without a poll, and was lost within "
        f"{found.lost:g} s"
    )


def _use(lease: float) -> str:
    if lease <= ASSUMED_LEASE:
        return f"{ASSUMED_LEASE:g} s stay assumed."
    return f"--lease measured uses {lease:g} s of it."


def _state_folder() -> Check:
    from perfect_async._ledger.folder import STATE_VARIABLE, default_folder
    from perfect_async._ledger.rows import LedgerUnavailable

    hint = f"Let {STATE_VARIABLE} name a folder that this user can write."
    try:
        folder = default_folder()
    except LedgerUnavailable as exc:
        return Check("state", "warning", f"There is no state folder: {exc}.", hint)
    facts: dict[str, object] = {"folder": str(folder)}
    shown = quoted(folder)
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        text = f"The state folder {shown} cannot be written."
        return Check("state", "warning", text, hint, facts)
    if above != folder:
        text = f"The state folder {shown} does not exist; it is made when it is needed."
        return Check("state", "ok", text, None, facts)
    return Check("state", "ok", f"The state folder {shown} can be written.", None, facts)


def _sharing(found: _Members | None) -> Check:
    alone = "Run one process at a time on the key."
    if found is None:
        return Check("sharing", "note", "Sharing the key's window was not tried.")
    if found.where is None:
        text = "Processes do not share the key's window: PERFECT_ASYNC_SHARE is off."
        return Check("sharing", "warning", text, alone)
    facts: dict[str, object] = {"where": found.where, "works": found.problem is None}
    if found.problem is not None:
        text = f"Processes cannot share the key's window: {found.problem.rstrip('.')}."
        return Check("sharing", "warning", text, alone, facts)
    text = f"Processes share the key's window by {quoted(found.where)}."
    return Check("sharing", "ok", text, None, facts)


def _extras() -> Check:
    """Check which extras are installed; versions are not compared."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        listed = metadata("perfect_async")
    except PackageNotFoundError:
        return Check("extras", "note", "Not known: this copy of the package is not installed.")
    needs = _needs(listed.get_all("Requires-Dist") or [])
    # The extra `dev` is for people who change the package.
    found = {name: _is_installed(name, needs) for name in sorted(needs) if name != "dev"}
    there = [name for name, installed in found.items() if installed]
    missing = [name for name, installed in found.items() if not installed]
    text = f"Installed: {', '.join(there) or 'none'}."
    hint = None
    if missing:
        text += f" Not installed: {', '.join(missing)}."
        hint = f"pip install 'perfect_async[{','.join(missing)}]' adds them, where you need them."
    return Check("extras", "ok", text, hint, {"extras": found})


def _needs(requirements: Sequence[str]) -> dict[str, list[str]]:
    """Return what each extra needs, by the lines of the metadata; "[x]" stands for an extra x."""
    needs: dict[str, list[str]] = {}
    for line in requirements:
        text, _, marker = line.partition(";")
        extra, found = _EXTRA.search(marker), _REQUIREMENT.match(text.strip())
        if extra is None or found is None:
            continue
        listed = needs.setdefault(extra["extra"], [])
        if found["name"].replace("-", "_").lower() == "perfect_async":
            listed += [f"[{name.strip()}]" for name in (found["extras"] or "").split(",")]
        else:
            listed.append(found["name"])
    return needs


def _is_installed(extra: str, needs: Mapping[str, Sequence[str]]) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    for need in needs.get(extra, ()):
        if need.startswith("["):
            if not _is_installed(need[1:-1], needs):
                return False
            continue
        try:
            distribution(need)
        except PackageNotFoundError:
            return False
    return True


def _prevents_work(checks: Sequence[Check]) -> bool:
    return any(check.state == "error" for check in checks)


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the lines for a person, wrapped on a terminal only."""
    width = 0
    if sys.stdout.isatty():
        width = min(shutil.get_terminal_size().columns, _MOST_WIDTH)
    for check in checks:
        yield from _wrapped(f"{check.state:8} {check.name:8} ", check.text, width)
        if check.hint is not None:
            yield from _wrapped(" " * (_INDENT - 3) + "-> ", check.hint, width)


def _wrapped(head: str, text: str, width: int) -> list[str]:
    text = printable(text)
    if width <= 2 * _INDENT:
        return [head + text]
    room = width - _INDENT
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [(head if not number else " " * _INDENT) + line for number, line in enumerate(lines)]


def _span(seconds: float) -> str:
    """Return a length of time for a person."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 2 * 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"


# The lease.


def _measure(picture: str | None, template: str | None, *, yes: bool, json: bool) -> int:
    """Measure the lease with one avatar, keep what was found, and print it."""
    if picture is None:
        raise ConfigurationError(
            "--measure-lease needs --picture: a portrait, of which one avatar is made."
        )
    found = find_pictures([picture], Avatar.formats)
    if len(found) != 1:
        raise ConfigurationError(
            f"--picture {quoted(picture)} names {len(found)} pictures; name one."
        )
    print_error(
        f"one avatar is made of {picture}, and polled after 12, 20 and 40 s only, until it is "
        "lost. It costs 1 unit, lost or not; the avatar is not saved. No task of yours is touched."
    )
    if not yes and not _agrees():
        print_error("nothing was sent.")
        return _runner.FAILED
    source = found[0]

    async def measure() -> LeaseBracket | None:
        bracket: LeaseBracket | None = None
        async with _runner.make_client() as client:
            style = template or await _first_style(client)
            print_error(f"the task is created with the style {style}; the first poll comes later.")
            job = Avatar(source, template_id=style, output_count=1)
            async for bracket in client.measure_lease(job):
                if bracket.lost is None and not bracket.ended:
                    print_error(f"so far {_measured(bracket)}.")
        return bracket

    bracket = _runner.run(measure)
    if bracket is None:
        raise AssertionError(bracket)
    if json:
        fields = {
            "survived": bracket.survived,
            "lost": bracket.lost,
            "lease": bracket.lease,
            "ended": bracket.ended,
        }
        print_line(json_.dumps(fields))
        return 0
    text = "the task ended before its first poll, which shows nothing"
    if bracket.survived or bracket.lost is not None:
        text = _measured(bracket)
    ended = " It ended during the next gap, which shows nothing." if bracket.ended else ""
    print_line(f"{text[0].upper()}{text[1:]}.{ended} {_use(bracket.lease)}")
    return 0


def _agrees() -> bool:
    """Ask whether a unit may be spent. Raises `ConfigurationError` without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError(
            "--measure-lease spends 1 unit, and no terminal is there to ask on: pass -y."
        )
    sys.stderr.write("Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


async def _first_style(client: Client) -> str:
    async for style in client.templates():
        return style.id
    raise ConfigurationError("the vendor lists no styles: name one with --template.")
