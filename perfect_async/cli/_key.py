"""The API key of a command: from `--api-key-file`, else from the environment.

The key itself is no option, because other users can list command lines, and shells keep them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Final

import attrs

from perfect_async.errors import ConfigurationError, quoted

_KEYLESS: Final = frozenset({"forget", "sandbox", "demo", "enqueue"})
"""Commands that send nothing to the vendor."""
_LONGEST: Final = 10_000
_HELP: Final = """
api_key_file
    A file that holds the API key, instead of the variable YOUCAM_API_KEY.
"""


@attrs.frozen
class KeyFile:
    """The key that a file holds."""

    path: Path
    key: str = attrs.field(repr=False)


_given: ContextVar[KeyFile | None] = ContextVar("perfect_async_key_file", default=None)


def key_file() -> KeyFile | None:
    """Return the file that this command was given, None where it was given none."""
    return _given.get()


def api_key() -> str | None:
    """Return the key of the file, None where the environment holds it."""
    given = _given.get()
    return None if given is None else given.key


def with_key_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return `command` with the option `--api-key-file`, where it needs a key."""
    if command.__name__ in _KEYLESS:
        return command

    @wraps(command)
    def run(*arguments: object, api_key_file: Path | None = None, **options: object) -> object:
        token = _given.set(None if api_key_file is None else read_key(api_key_file))
        try:
            return command(*arguments, **options)
        finally:
            _given.reset(token)

    signature = inspect.signature(command)
    option = inspect.Parameter(
        "api_key_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Path | None
    )
    parameters = [*signature.parameters.values(), option]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {**command.__annotations__, option.name: option.annotation}
    run.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}{_HELP}"
    return run


def read_key(path: Path) -> KeyFile:
    """Read the key that `path` holds.

    Raises `ConfigurationError`, whose message quotes nothing of it.
    """
    from perfect_async._client.settings import key_flaw, stripped

    try:
        with path.open(encoding="utf-8") as file:
            found = KeyFile(path, stripped(file.read(_LONGEST)) or "")
    except (OSError, ValueError) as exc:
        # The text of a decoding error quotes the file's content.
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigurationError(
            f"--api-key-file {quoted(path)} cannot be read: {reason}."
        ) from None
    if (flaw := key_flaw(found.key)) is not None:
        raise ConfigurationError(f"The API key in --api-key-file {quoted(path)} {flaw}.")
    return found
