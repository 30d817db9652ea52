"""Checks of settings: a value that cannot work is refused where it is given."""

from __future__ import annotations

import math
import os
from enum import Enum
from pathlib import Path
from typing import Final, cast

from perfect_async._api.tasks import FEATURES
from perfect_async._files.saving import is_path
from perfect_async._log import LOG
from perfect_async._runtime.sharing import ShareSetting
from perfect_async._transport.transport import HttpTransport, NetworkTransport
from perfect_async.errors import ConfigurationError, JobRefused, quoted, redacted
from perfect_async.models import feature_name

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


def key_problem(key: str | None) -> str | None:
    """Return why `key` cannot be an API key, or None.

    The text quotes nothing of the key, and nothing is raised here: an error ends up in logs, and a
    traceback may be shown with the locals of its frames.
    """
    problem = None
    if not isinstance(key, str) or not key:
        problem = "is empty" if key == "" else "is missing"
    elif key.lower().startswith("bearer "):
        problem = 'starts with "Bearer ", which the client adds itself'
    elif not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds white space, control or non-ASCII characters"
    return problem and f"The API key {problem}: set {KEY_VARIABLE} or pass api_key."


def kind(name: str, value: object, kind: type) -> None:
    """Raise `ConfigurationError` if the setting `name` is of another type than `kind`."""
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be of type {kind.__name__}.")


def feature(value: object, version: str) -> str:
    """Return the name of the feature that `value` is, a class or a path.

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
            f"{quoted(value)} is no feature: pass a class, as Smile, or the path of a feature."
        )
    return name


def task_id(value: object) -> str:
    """Return `value` if it can be the id of a task. Raises `ConfigurationError`."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{quoted(value)} is no task id.")
    return value


def units(value: float) -> float:
    """Return `value` if it can be `max_units`. Raises `ConfigurationError`."""
    return number("max_units", value, "a number")


def share(value: object, transport: HttpTransport | None) -> ShareSetting | None:
    """Return where the ledger is that processes on the key share; None where they share none.

    `value` is what the user gave, `UNSET` for nothing. Raises `ConfigurationError`.
    """
    asked_for = value is not UNSET
    if os.environ.get(SHARE_VARIABLE, "").strip().lower() == "off":
        return None
    if not asked_for:
        if transport is not None and not isinstance(transport, NetworkTransport):
            LOG.info(
                "Requests go through a transport of the program's own, so this key is not shared "
                'with other processes; share="machine" shares it.'
            )
            return None
        value = os.environ.get(SHARE_VARIABLE) or MACHINE
    if value is None:
        return None
    text = os.fspath(cast("str", value)) if isinstance(value, str | os.PathLike) else None
    if text == MACHINE:
        return ShareSetting(asked_for=asked_for)
    if isinstance(text, str) and text.startswith(("redis://", "rediss://")):
        return ShareSetting(url=text, asked_for=asked_for)
    if isinstance(text, str) and "://" not in text and is_path(text) and Path(text).is_absolute():
        return ShareSetting(folder=text, asked_for=asked_for)
    shown = quoted(redacted(text)) if isinstance(text, str) else quoted(value)
    raise ConfigurationError(
        f'share is {shown}; it must be "{MACHINE}", the absolute path of a folder, a URL that '
        "begins with redis:// or rediss://, or None."
    )


def folder(value: object) -> str | None:
    """Return `value` as text if it can be `save_to`. Raises `ConfigurationError`."""
    if value is None:
        return None
    path, shown = cast("object", None), quoted(value)
    if isinstance(value, str | os.PathLike):
        path = os.fspath(cast("str | os.PathLike[str]", value))
    if not is_path(path):
        raise ConfigurationError(f"save_to is {shown}; it must be the path of a folder.")
    return path


def number(name: str, value: float, what: str = "seconds") -> float:
    """Return `value` if it can be the setting `name`. Raises `ConfigurationError`."""
    if type(value) not in {int, float} or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be {what} from 0.")
    return float(value)
