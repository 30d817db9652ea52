"""The commands `help` and `completion`, and which help a usage error names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from perfect_async.cli._output import print_line
from perfect_async.errors import ConfigurationError, quoted


class _App(Protocol):
    """The methods of a cyclopts app that are used here; only `_app.py` imports cyclopts."""

    def help_print(self, tokens: Sequence[str]) -> None: ...

    def generate_completion(self, *, shell: Literal["bash", "zsh", "fish"]) -> str: ...


_ZSH_FUNCTION: Final = re.compile(r"^(\S+)\(\) \{$", re.MULTILINE)
_ZSH_CALL: Final = """\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  {name} "$@"
else
  compdef {name} perfect-async
fi
"""


def _callable_by_zsh(script: str) -> str:
    """Return `script` with a call of the function that it only defines.

    A file in `fpath` is the body of a function, which zsh calls; `eval` needs `compdef`.
    """
    found = _ZSH_FUNCTION.search(script)
    if found is None or script.count(found[1]) > 1:
        return script
    return f"{script.rstrip()}\n\n{_ZSH_CALL.format(name=found[1])}"


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
        `eval "$(perfect-async completion zsh)"` after `compinit` in `~/.zshrc`. It is faster as a
        file: `perfect-async completion zsh > ~/.zfunc/_perfect-async`, with `~/.zfunc` in `fpath`
        before `compinit`. fish:
        `perfect-async completion fish > ~/.config/fish/completions/perfect-async.fish`.

        Parameters
        ----------
        shell
            bash, zsh or fish.
        """
        script = app.generate_completion(shell=shell)
        print_line(_callable_by_zsh(script) if shell == "zsh" else script)

    help_.__name__ = "help"
    return help_, completion
