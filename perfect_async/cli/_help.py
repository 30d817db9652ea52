"""The commands `help` and `completion`, and which help a usage error names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from perfect_async.cli._output import print_line
from perfect_async.errors import ConfigurationError, quoted


class _App(Protocol):
    """What is used here of the library that reads command lines; only `_app.py` imports it."""

    def help_print(self, tokens: Sequence[str]) -> None: ...

    def generate_completion(self, *, shell: Literal["bash", "zsh", "fish"]) -> str: ...


def help_of(arguments: Sequence[str], commands: Sequence[str]) -> str:
    """Return the command line that explains the usage of `arguments`."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    return f"perfect-async {named} --help" if named in commands else "perfect-async --help"


def about(app: _App, commands: Sequence[str]) -> tuple[Callable[..., None], ...]:
    """Return the commands that are about the program itself."""

    def help_(command: str | None = None, /) -> None:
        """Show this help, or that of a command.

        Parameters
        ----------
        command
            The command to explain.
        """
        if command is not None and command not in commands:
            raise ConfigurationError(
                f"there is no command {quoted(command)}; perfect-async help lists them."
            )
        app.help_print([] if command is None else [command])

    def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
        """Print the completion of commands and options for a shell.

        bash: `eval "$(perfect-async completion bash)"` in `~/.bashrc`. zsh:
        `perfect-async completion zsh > ~/.zfunc/_perfect-async`, with `~/.zfunc` in `fpath` before
        `compinit`. fish:
        `perfect-async completion fish > ~/.config/fish/completions/perfect-async.fish`.

        Parameters
        ----------
        shell
            bash, zsh or fish.
        """
        print_line(app.generate_completion(shell=shell))

    help_.__name__ = "help"
    return help_, completion
