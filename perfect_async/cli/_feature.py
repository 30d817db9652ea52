"""The command `feature`: any feature of the vendor, by its path."""

from __future__ import annotations

import json as json_
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, cast

from perfect_async.cli._buy import OUT, Options, buy_one
from perfect_async.cli._output import print_error
from perfect_async.errors import ConfigurationError, quoted
from perfect_async.models import Feature, FileId, Inputs, Source

_PAIR: Final = re.compile(r"([A-Za-z0-9_]+)(\[\])?=(.*)", re.DOTALL)
_FILE: Final = "file:"
"""Stands before the id of a file that is at the vendor already."""


def feature(
    path: str,
    /,
    *,
    param: list[str] | None = None,
    src: str | None = None,
    ref: list[str] | None = None,
    mask: str | None = None,
    input_: list[str] | None = None,
    api_version: str = "v2.0",
    units: int | None = None,
    out: Path = OUT,
    json: bool = False,
    journal: Path | None = None,
    delete: bool = False,
    max_units: float | None = None,
    insured: float | None = None,
    lease: float | Literal["measured"] | None = None,
    sole_user: bool = False,
    fit: bool = False,
    report: Path | None = None,
    dry_run: bool = False,
    yes: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Run any feature of the vendor once, by its path, and save what it gives.

    The vendor's page of the feature says what it takes and costs. Before anything is sent, the
    command says what it costs of which balance. Files are saved as they come; an
    answer with scores or colours is saved as JSON.

    Parameters
    ----------
    path
        What stands behind "/task/" in the vendor's page: skin-analysis, 2d-vto/ring.
    param
        A parameter as NAME=VALUE; may be repeated. VALUE is JSON where it can be read as such
        (5, true, '["acne"]'), else text. The object {"$input": "ref", "index": 0} in it stands for
        the id of an input.
    src
        The source: a file or a URL, or file:ID for a file that is at the vendor.
    ref
        A reference, likewise; repeated, it is a list.
    mask
        A mask, likewise.
    input_
        Any other input as NAME=FILE; NAME[]=FILE, which may be repeated, makes a list.
    api_version
        What stands before "/task/" in the vendor's page.
    units
        The price, which --max-units needs.
    out
        Folder for the results; made where it is missing.
    json
        Print a line of JSON on stdout instead of the paths of the results.
    journal
        A file, made where it is missing, that records the purchase: after a crash `resume`
        continues, and an equal job that was finished within a day is not bought again.
    delete
        Delete the vendor's copies of the inputs and the result once the result is saved.
    max_units
        The most that the run may be charged.
    insured
        Seconds for which the running task can be kept alive in the worst case; 120 by default.
    lease
        Seconds for which the running task survives without a poll; 10 by default, the shortest that
        the vendor's documents name. "measured" uses what `doctor --measure-lease` found for this
        key and host. If the vendor's lease is shorter, the task is lost with its units.
    sole_user
        Promise that nothing else creates tasks on this account during the run. A task whose
        creation got no answer can then be found in the unit history. If it is not true, another
        program's task may be taken for it.
    fit
        Convert pictures of 10 MiB or more, which the vendor refuses, and those that it takes and
        may show wrongly: turned by EXIF, in CMYK, or with 16 bits for a colour. The files stay as
        they are.
    report
        A file for a report of this run: a page with what was made (.html), or a table (.csv).
    dry_run
        Print what would be sent and what it would cost; send and write nothing. Works without a
        key.
    yes
        Do not ask. On a terminal a run asks from 20 units on, where the price is not known, or
        where the balance is too low.
    quiet
        Print results and errors only.
    verbose
        Also print what is done, and the log: every request to the vendor with its answer.
    """
    if max_units is not None and units is None:
        raise ConfigurationError(
            f"--max-units needs --units: the price of {quoted(path)} is on the vendor's page only."
        )
    job = _job(path, param or [], _inputs(src, ref or [], mask, input_ or []), api_version, units)
    return buy_one(
        job,
        Options(
            out=out,
            json=json,
            journal=journal,
            delete=delete,
            max_units=max_units,
            insured=insured,
            lease=lease,
            sole_user=sole_user,
            fit=fit,
            report=report,
            dry_run=dry_run,
            yes=yes,
            quiet=quiet,
            verbose=verbose,
        ),
    )


def _inputs(
    src: str | None, ref: Sequence[str], mask: str | None, others: Sequence[str]
) -> dict[str, Inputs]:
    """Return the inputs that the options name. Raises `ConfigurationError`."""
    found: dict[str, Inputs] = {}
    if src is not None:
        found["src"] = _source("--src", src)
    if ref:
        sources = [_source("--ref", each) for each in ref]
        found["ref"] = sources[0] if len(ref) == 1 else sources
    if mask is not None:
        found["mask"] = _source("--mask", mask)
    for text in others:
        name, many, place = _pair("--input", text, "NAME=FILE")
        source = _source(f"--input {name}", place)
        if many:
            cast("list[Source]", found.setdefault(name, [])).append(source)
        elif name in found:
            raise ConfigurationError(f"the input {quoted(name)} is named twice: use {name}[]=FILE.")
        else:
            found[name] = source
    return found


def _job(
    path: str,
    params: Sequence[str],
    inputs: dict[str, Inputs],
    version: str,
    units: int | None,
) -> Feature:
    if (behind := path.rpartition("/task/")[2]) != path:
        raise ConfigurationError(
            f"{quoted(path)} is a whole address: pass what stands behind /task/, {quoted(behind)}."
        )
    read: dict[str, object] = {}
    for text in params:
        name, many, value = _pair("--param", text, "NAME=VALUE")
        if many or name in read:
            raise ConfigurationError(f"--param {quoted(name)} is no single value: pass a list.")
        read[name] = _value(name, value)
    # These are parameters of the constructor, so an input cannot have their names.
    if taken := inputs.keys() & {"path", "params", "version", "units", "key"}:
        raise ConfigurationError(f"an input cannot have the name {quoted(min(taken))}.")
    make = cast("Callable[..., Feature]", Feature)
    return make(path, read, version=version, units=units, **inputs)


def _pair(option: str, text: str, form: str) -> tuple[str, bool, str]:
    found = _PAIR.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"{option} is {quoted(text)}; it must be {form}.")
    return found[1], found[2] is not None, found[3]


def _value(name: str, text: str) -> object:
    try:
        return cast("object", json_.loads(text))
    except (ValueError, RecursionError):
        if text.startswith(("[", "{")):
            # The shell may have taken quotes away. A text may begin like that, too, so it is sent.
            print_error(
                f"--param {name} is sent as text, since {quoted(text)} is no JSON: put JSON into "
                "single quotes."
            )
        return text


def _source(option: str, text: str) -> Source:
    if text in {"", _FILE}:
        raise ConfigurationError(
            f"{option} is {quoted(text)}; it must be a file, a URL, or file: and an id."
        )
    if text.startswith(_FILE):
        return FileId(text.removeprefix(_FILE))
    return text if "://" in text else Path(text).expanduser()
