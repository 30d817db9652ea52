"""Checks settings, so that a value that cannot work is refused when it is passed."""

from __future__ import annotations

import math
import os
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

from perfect_async._api.tasks import FEATURES
from perfect_async._files.saving import is_path
from perfect_async._log import LOG
from perfect_async._runtime.sharing import ShareSetting
from perfect_async._runtime.spec import JobOptions
from perfect_async._time import SECOND
from perfect_async._transport.transport import HttpTransport, NetworkTransport
from perfect_async.errors import (
    QUOTES,
    ConfigurationError,
    JobRefused,
    quoted,
    redacted,
    shown_value,
)
from perfect_async.models import Polling, feature_name

KEY_VARIABLE: Final = "YOUCAM_API_KEY"
URL_VARIABLE: Final = "YOUCAM_BASE_URL"
SECRET_VARIABLE: Final = "YOUCAM_WEBHOOK_SECRET"  # noqa: S105 - its name
SHARE_VARIABLE: Final = "PERFECT_ASYNC_SHARE"
BASE_URL: Final = "https://yce-api-01.makeupar.com"


MACHINE: Final = "machine"


class Unset(Enum):
    """The value of a setting that the user did not give."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<unset>"


UNSET: Final = Unset.UNSET


def stripped(key: str | None) -> str | None:
    """Return `key` without a line end at its end, which a file adds."""
    return key.rstrip("\r\n") if isinstance(cast("object", key), str) and key else key


def key_problem(key: str | None) -> str | None:
    """Return a message that says why `key` cannot be an API key, or None; see `key_flaw`."""
    flaw = key_flaw(key)
    return flaw and f"The API key {flaw}: set {KEY_VARIABLE} or pass api_key."


def key_flaw(key: str | None) -> str | None:
    """Return the flaw of an API key as the predicate of a sentence, or None.

    The text quotes no part of the key. No error is raised here, since a traceback may be logged
    with the locals of its frames.
    """
    problem = None
    if key is None:
        problem = "is missing"
    elif not isinstance(cast("object", key), str):
        # A key of another type may still be a secret, so only its type is named.
        problem = f"is of the type {type(key).__name__}, and must be text"
    elif not key:
        problem = "is empty"
    elif key[0] in QUOTES or key[-1] in QUOTES:
        problem = "stands in quotes, which are no part of it"
    elif not key.strip(".\u2026"):
        problem = 'is "...", which stands for a key in examples'
    elif key.lower().startswith("bearer "):
        problem = 'starts with "Bearer ", which the client adds itself'
    elif not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds white space, control or non-ASCII characters"
    return problem


def kind(name: str, value: object, kind: type) -> None:
    """Raise `ConfigurationError` unless the setting `name` is of the type `kind`."""
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"{name} is {shown_value(value)}; it must be of type {kind.__name__}."
        )


def feature(value: object, version: str) -> str:
    """Return the name of the feature that `value`, a class or a path, stands for.

    Raises `ConfigurationError`.
    """
    if isinstance(value, str):
        try:
            return feature_name(value, version)
        except JobRefused as exc:
            raise ConfigurationError(exc.message) from None
    name = cast("object", getattr(value, "feature", None))
    if not isinstance(name, str) or name not in FEATURES:
        raise ConfigurationError(
            f"{quoted(value)} is not a feature: pass a class such as Smile, or the path of a "
            "feature."
        )
    return name


def attach_call(feature: str, task_id: str) -> str:
    """Return the call of `Client.attach` for a task, for a message; `feature` is its name."""
    typed = FEATURES.get(feature)
    if typed is not None:
        return f"await client.attach({typed.__name__}, {quoted(task_id)})"
    path, _, version = feature.partition("@")
    more = f", version={quoted(version)}" if version else ""
    return f"await client.attach({quoted(path)}, {quoted(task_id)}{more})"


def task_id(value: object) -> str:
    """Return `value` if it can be the id of a task. Raises `ConfigurationError`."""
    if value is None:
        error = ConfigurationError("task_id is None, so no task is known that could be asked for.")
        error.hint = (
            "An error has no task_id if its job was not sent, which costs nothing, or if its "
            "creation has no answer: then it has `units_at_stake`, and `SubmissionInDoubt` also "
            "`candidates`."
        )
        raise error
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f"task_id is {shown_value(value)}; it must be the vendor's id, a text."
        )
    return value


def units(value: float) -> float:
    """Return `value` if it can be `max_units`. Raises `ConfigurationError`."""
    return number("max_units", value, "a number")


def share(value: object, transport: HttpTransport | None) -> ShareSetting | None:
    """Return where the ledger of the key is; None if the key is not shared.

    `value` is the user's setting, `UNSET` if there is none. Raises `ConfigurationError`.
    """
    if os.environ.get(SHARE_VARIABLE, "").strip().lower() == "off":
        return None
    if value is UNSET:
        if transport is not None and not isinstance(transport, NetworkTransport):
            LOG.info(
                "This client has a transport of its own, so it does not share its key's request "
                'window with other processes; share="machine" shares it.'
            )
            return None
        value = os.environ.get(SHARE_VARIABLE) or MACHINE
    if value is None:
        return None
    unknown = shown_value(value)
    text = os.fspath(cast("str", value)) if isinstance(value, str | os.PathLike) else None
    if text == MACHINE:
        return ShareSetting()
    if isinstance(text, str) and text.startswith(("redis://", "rediss://")):
        return ShareSetting(url=text)
    if isinstance(text, str) and "://" not in text and is_path(text) and Path(text).is_absolute():
        return ShareSetting(folder=text)
    shown = quoted(redacted(text)) if isinstance(text, str) else unknown
    raise ConfigurationError(
        f'share is {shown}; it must be "{MACHINE}", the absolute path of a folder, a URL that '
        "begins with redis:// or rediss://, or None."
    )


def folder(value: object) -> str | None:
    """Return `value` as text if it can be `save_to`. Raises `ConfigurationError`."""
    if value is None:
        return None
    path, shown = cast("object", None), shown_value(value)
    if isinstance(value, str | os.PathLike):
        path = os.fspath(cast("str | os.PathLike[str]", value))
    if not is_path(path):
        raise ConfigurationError(f"save_to is {shown}; it must be the path of a folder.")
    return path


def job_options(
    polling: Polling,
    *,
    save_to: object = None,
    delete: bool = False,
    give_up_after: float | None = None,
    engine_retries: int | None = None,
    buy_in_doubt: bool = False,
) -> JobOptions:
    """Return the checked options of a job. Raises `ConfigurationError`.

    `polling` is the client's.
    """
    path = folder(save_to)
    if delete and path is None:
        raise ConfigurationError("delete needs save_to: only saved results are deleted.")
    give_up: int | None = None
    if give_up_after is not None:
        seconds = number("give_up_after", give_up_after)
        if not polling.lease <= seconds <= polling.give_up_after:
            raise ConfigurationError(
                f"give_up_after is {shown_value(give_up_after)}; for one job it must be from "
                f"{polling.lease:g} s (Polling.lease) to {polling.give_up_after:g} s "
                "(Polling.give_up_after)."
            )
        give_up = round(seconds * SECOND)
    if engine_retries is not None:
        retries(engine_retries)
    return JobOptions(
        path, delete, buy_in_doubt=buy_in_doubt, give_up=give_up, engine_retries=engine_retries
    )


def fit(value: object) -> bool:
    """Return `value` if it can be `fit`. Raises `ConfigurationError`, also if Pillow is missing."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"fit is {shown_value(value)}; it must be True or False.")
    if value and find_spec("PIL") is None:
        raise ConfigurationError(
            "fit=True needs Pillow, which the extra `fit` brings: pip install 'perfect_async[fit]'."
        )
    return value


def callback(value: object) -> None:
    """Raise `ConfigurationError` unless `value` can be `on_event`."""
    if value is not None and not callable(value):
        raise ConfigurationError(f"on_event is {shown_value(value)}; it must be a function.")


def retries(value: object) -> None:
    """Raise `ConfigurationError` unless `value` can be `engine_retries`."""
    if type(value) is not int or value < 0:
        raise ConfigurationError(
            f"engine_retries is {shown_value(value)}; it must be a whole number from 0."
        )


def number(name: str, value: float, what: str = "seconds") -> float:
    """Return `value` if it can be the setting `name`. Raises `ConfigurationError`."""
    if type(value) not in {int, float} or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} is {shown_value(value)}; it must be {what} from 0.")
    return float(value)
