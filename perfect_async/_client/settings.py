"""Checks of settings: a value that cannot work is refused where it is given."""

from __future__ import annotations

import math
import os
from typing import Final, cast

from perfect_async._files.saving import is_path
from perfect_async.errors import ConfigurationError, quoted

KEY_VARIABLE: Final = "YOUCAM_API_KEY"
URL_VARIABLE: Final = "YOUCAM_BASE_URL"
SECRET_VARIABLE: Final = "YOUCAM_WEBHOOK_SECRET"  # noqa: S105 - its name
BASE_URL: Final = "https://yce-api-01.makeupar.com"


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


def task_id(value: object) -> str:
    """Return `value` if it can be the id of a task. Raises `ConfigurationError`."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{quoted(value)} is no task id.")
    return value


def units(value: float) -> float:
    """Return `value` if it can be `max_units`. Raises `ConfigurationError`."""
    return number("max_units", value, "a number")


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
