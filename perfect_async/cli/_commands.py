"""The commands that ask, tidy, serve and show; those that make pictures are in `cli`."""

from __future__ import annotations

import json as json_
import os
import socket
import sys
from pathlib import Path

from perfect_async import ConfigurationError, Smile, Template, Units
from perfect_async._client.settings import SECRET_VARIABLE
from perfect_async.cli import _program
from perfect_async.cli._inputs import expand
from perfect_async.errors import quoted


def templates(*, json: bool = False) -> None:
    """List the styles for avatars.

    Parameters
    ----------
    json
        Print one line of JSON per style.
    """
    from perfect_async.cli._display import table, write

    async def ask() -> list[Template]:
        async with _program.client() as client:
            return [template async for template in client.templates()]

    found = _program.run(ask)
    if json:
        for one in found:
            facts = {"id": one.id, "title": one.title, "category": one.category, "thumb": one.thumb}
            write(json_.dumps(facts))
    else:
        table(["id", "title", "category"], [(one.id, one.title, one.category) for one in found])


def units(*, json: bool = False) -> None:
    """Show the balance of units and where it comes from.

    Parameters
    ----------
    json
        Print one line of JSON.
    """
    from perfect_async.cli._display import table, write

    async def ask() -> Units:
        async with _program.client() as client:
            return await client.units()

    found = _program.run(ask)
    grants = [
        (one.kind, one.amount, None if one.expires_at is None else one.expires_at.isoformat())
        for one in found.grants
    ]
    if json:
        named = [dict(zip(("kind", "amount", "expires_at"), one, strict=True)) for one in grants]
        write(json_.dumps({"balance": found.balance, "grants": named}))
        return
    rows = [(kind, f"{amount:g}", expires or "never") for kind, amount, expires in grants]
    balance = "unknown" if found.balance is None else f"{found.balance:g}"
    table(["units", "amount", "until"], [("balance", balance, ""), *rows])


def forget(*, journal: Path) -> None:
    """Purge what a journal knows of finished jobs: paths, names and ids.

    What is not finished stays, and can be resumed. A finished picture that is asked for again is
    then bought again.

    Parameters
    ----------
    journal
        The journal's file; nobody may be using it.
    """
    from perfect_async._journal.writer import JournalWriter
    from perfect_async.cli._display import write

    _program.there(journal)
    gone = _program.run(lambda: JournalWriter.forget(journal))
    write(f"{gone} finished jobs forgotten")


def sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    seed: int = 0,
    units: float = 1000.0,
    lease: float = 10.0,
    fail: float = 0.0,
    speed: float = 1.0,
    webhook_url: str | None = None,
    webhook_secret_file: Path | None = None,
) -> None:
    """Serve a stand-in for the vendor on a port until Ctrl-C, for any client in any language.

    It has the vendor's rules, limits and prices, takes any key, and ends with its ledger.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port to listen on, 1 to 65535.
    seed
        Fixes every chance.
    units
        The balance to begin with.
    lease
        Seconds after which a running task that nobody polled is lost.
    fail
        The share of tasks that the engine fails, 0 to 1.
    speed
        Divides the time that the engine takes.
    webhook_url
        Where to announce tasks that ended; signed with the secret that the variable
        YOUCAM_WEBHOOK_SECRET holds, or with several, separated by white space.
    webhook_secret_file
        A file that holds the secret instead.
    """
    _check_share(fail)
    if not 0 < speed < float("inf") or not lease > 0:
        raise ConfigurationError("--speed and --lease must be above 0.")
    try:
        from perfect_async.sandbox import run
    except ImportError as exc:
        raise ConfigurationError(_program.missing(exc)) from exc
    secrets = None if webhook_url is None else _secrets(webhook_url, webhook_secret_file)
    if not 0 < port < 2**16:
        raise ConfigurationError(f"--port is {port}; it must be from 1 to 65535.")
    try:
        # The server itself would end the process in a way of its own.
        socket.create_server((host, port)).close()
    except OSError as exc:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {exc}.") from exc
    print(
        f"In another terminal: YOUCAM_BASE_URL=http://{host}:{port} YOUCAM_API_KEY=anything "
        "perfect-async smile PICTURES",
        file=sys.stderr,
    )
    run(
        host=host,
        port=port,
        seed=seed,
        units=units,
        lease=lease,
        engine_errors=fail,
        speed=speed,
        webhook_url=webhook_url,
        webhook_secret=secrets,
    )


def demo(
    pictures: list[str] | None = None,
    /,
    *,
    out: Path = Path("perfect-async-demo"),
    fail: float = 0.0,
    seed: int = 0,
) -> int:
    """Make 24 drawn portraits smile, on a sandbox inside this process: no key, no network.

    Parameters
    ----------
    pictures
        Your own files, folders and patterns instead; they stay on this machine.
    out
        Folder for the pictures, a contact sheet and a summary; made where it is missing.
    fail
        The share of pictures that the engine fails, 0 to 1; the exit status is then 1.
    seed
        Which portraits are drawn, and which pictures fail.
    """
    from perfect_async.cli._display import Display, write

    _check_share(fail)
    found = None if pictures is None else expand(pictures, Smile.formats, out)
    try:
        from perfect_async.cli._demo import Demo

        _program.ready(out)
        show = Demo(out, found, fail=fail, seed=seed)
    except ImportError as exc:
        raise ConfigurationError(_program.missing(exc)) from exc
    screen = Display("nothing")
    screen.say(show.announcement)
    with screen:
        summary = _program.run(lambda: show.run(screen))
    screen.close(summary, show.results)
    for path in show.report(summary):
        write(str(path))
    return _program.status(summary)


def _check_share(fail: float) -> None:
    if not 0 <= fail <= 1:
        raise ConfigurationError(f"--fail is {fail:g}; it must be a share from 0 to 1.")


def _secrets(url: str, path: Path | None) -> list[str]:
    """The secrets of the sandbox's webhook; never on the command line, which anybody may list."""
    from perfect_async.webhooks import Secrets

    if not url.lower().startswith(("http://", "https://")):
        raise ConfigurationError(f"--webhook-url is {quoted(url)}; it must be http:// or https://.")
    try:
        text = os.environ.get(SECRET_VARIABLE, "") if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as exc:
        # Of an error in decoding only that it is one: its text quotes the file.
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigurationError(f"--webhook-secret-file cannot be read: {why}.") from None
    found = text.split()
    if not found:
        raise ConfigurationError(
            f"--webhook-url needs a secret: set {SECRET_VARIABLE} or pass --webhook-secret-file."
        )
    Secrets(found)
    return found
