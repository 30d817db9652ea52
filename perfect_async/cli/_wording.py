"""Messages of the library and of cyclopts in the words of the terminal: options and variables."""

from __future__ import annotations

import re
from typing import Final

# Names of settings in the library's messages, and their names in the terminal.
_OPTIONS: Final = {
    "base_url": "YOUCAM_BASE_URL",
    "save_to": "--out",
    "max_units": "--max-units",
    "output_count": "--count",
    "units=": "--units",
    "Avatar.template_id": "--template",
    "Polling.insured": "--insured",
    "Client(fit=True)": "--fit",
    "fit=True": "--fit",
}
# Advice in the library's messages, and the advice for the terminal.
_ADVICE: Final = {
    "stands in quotes, which are no part of it: set YOUCAM_API_KEY or pass api_key.": (
        "stands in quotes, which are no part of it: remove them from YOUCAM_API_KEY, or pass "
        "--api-key-file."
    ),
    'starts with "Bearer ", which the client adds itself: set YOUCAM_API_KEY or pass api_key.': (
        'starts with "Bearer ", which is added to it anyway: remove that from YOUCAM_API_KEY, or '
        "pass --api-key-file."
    ),
    "holds white space, control or non-ASCII characters: set YOUCAM_API_KEY or pass api_key.": (
        "holds white space, control or non-ASCII characters: copy it to YOUCAM_API_KEY again, or "
        "pass --api-key-file."
    ),
    "TLS, 'WRONG_VERSION_NUMBER'": "the port does not speak https; YOUCAM_BASE_URL may need http",
    "cannot be used (FileNotFoundError).": "cannot be used: there is no such file.",
    ", the server of `share`, cannot be reached (": " cannot be reached (",
    "the user or password of `share`,": "the user or password of its URL,",
    "write special characters as urllib.parse.quote does.": (
        "write special characters percent-encoded, such as %40 for @."
    ),
    "cannot hold the ledger of `share`: ": "cannot hold the ledger: ",
    "The URL of `share` ": "The URL of the Redis server ",
    'Write share="redis://host:6379", or "rediss://user:password@host:6379/0".': (
        "Write redis://host:6379, or rediss://user:password@host:6379/0."
    ),
    'share="redis://..." needs the library redis:': "a Redis server needs the library redis:",
    "or name another server in `share`.": "or use another server.",
    "cannot be used: ConnectionError.": "cannot be reached: start it, or correct host and port.",
    "Check the key in the vendor's console and open a new client.": (
        "Check the key in the vendor's console, and set YOUCAM_API_KEY or pass --api-key-file."
    ),
    "lower `Limits` or find out who else uses this key.": (
        "find out who else uses this key, and try again later."
    ),
    "the host in base_url or YOUCAM_BASE_URL": "the host in YOUCAM_BASE_URL",
    "raise `max_units` to go on.": "raise --max-units to go on.",
    "Read `raw`, or ask for the task again by its id within a day; do not buy it again.": (
        "Do not buy it again; quote the task's id, which --json prints, to the vendor."
    ),
    "Fix the cause, then save them: by resuming the journal, or attach() with the task id.": (
        "Fix the cause; a run with --journal can then be resumed, and saves them."
    ),
    "Look at the unit history; buy_in_doubt=True, or another run of the program, consents to a "
    "second charge.": (
        "Look at the unit history in the vendor's console; the same command again consents to a "
        "second charge."
    ),
    "Nothing was bought for this job; run it on an open client.": (
        "Nothing was bought; run the command again."
    ),
    "Nothing was bought for this job; run it again with its picture.": (
        "Nothing was bought for it; run the command again with its picture."
    ),
    'Polling(lease="measured"): no lease was measured for this key and host. Run '
    "`perfect-async doctor --measure-lease`, which costs the units of one task, or use the "
    "default lease of 10 s.": (
        "--lease measured: nothing was measured for this key and host. Run `perfect-async doctor "
        "--measure-lease --picture FILE` first, which costs 1 unit, or leave --lease out."
    ),
    "Nothing was sent; correct the setting named here.": (
        "Nothing was sent; correct the option or variable named here."
    ),
    "Nothing was sent; correct the job.": "Nothing was sent; correct the option named here.",
    "Nothing was charged; buy units or run cheaper jobs.": (
        "Nothing was charged; buy units in the vendor's console."
    ),
    "Look the task up by its id.": "Quote the task's id, which --json prints, to the vendor.",
    "Compare the balance; run the job": "perfect-async units shows the balance; run the job",
    "A task that was created goes on while the client is open; a job that was never sent costs "
    "nothing.": (
        "A task that was created goes on while the command runs; nothing else is charged."
    ),
    "Put it back, or close the client and open it again.": (
        "Put it back, or end the run and resume it."
    ),
    "in use by another client or process.": (
        "in use by another process: wait until that has ended, or stop it with Ctrl-C."
    ),
    "The Redis server of `share` stopped answering while the client opened. Open the client again "
    "once the server answers.": (
        "The Redis server stopped answering. Run the command again once it answers."
    ),
    'it must be "machine", the absolute path of a folder, a URL that begins with redis:// or '
    "rediss://, or None.": (
        "it must be machine, the absolute path of a folder, a URL that begins with redis:// or "
        "rediss://, or off."
    ),
    "share is ": "PERFECT_ASYNC_SHARE is ",
    "params has ": "--param has ",
    "params holds ": "--param holds ",
    "params names ": "--param names ",
    "None, lists, dictionaries and placeholders.": "null, lists, objects and placeholders.",
    "version is ": "--api-version is ",
    "run the job again if": "run the command again if",
    "Run one process at a time on the key, or give each its share with Limits().split(n) and "
    "share=None.": "Run one process at a time on the key.",
    "If it is another process of yours that does not share the key, give each its share with "
    "Limits().split(n).": (
        "If it is another process of yours that does not share the key, run one at a time."
    ),
    "the next client with the same journal tries again when it opens.": (
        "the next run with the same --journal tries again."
    ),
    "Use Client(isolated=True), or asyncio.to_thread for the code that blocks. (This is "
    "logged once; statistics().blocked counts.)": (
        "The machine was asleep, or too busy: run fewer programs at the same time."
    ),
}
# A match must not be within a word or at the beginning of a quotation.
_ADVISED: Final = tuple(
    (re.compile(rf"(?:(?<![\w'\"./-])|(?=,)){re.escape(found)}"), text)
    for found, text in _ADVICE.items()
)
# The name of an httpx class stands before the reason in brackets.
_KIND: Final = re.compile(r"(?<= \()(?:Connect|Read|Write|Close|Proxy|RemoteProtocol)Error: ")
# A match must not be within a name or path, nor at the beginning of a quotation.
_SETTING: Final = re.compile(
    rf"(?<![\w.'\"/-])(?:{'|'.join(map(re.escape, _OPTIONS))})(?![\w/-]|\.\w)"
)


# Messages of cyclopts about a mistake, and the messages in their place.
_USAGE: Final = (
    (
        r"Command \S+ parameter --template requires an argument\.",
        "--template is missing: perfect-async templates lists the styles.",
    ),
    (r"Command \S+ parameter (\S+) requires an argument\.", r"\1 is missing."),
    (r"Unused Tokens: \['?(.+?)'?(?:, .*)?\]\.", r'"\1" is one word too many.'),
    # The message of `_numbers` names the option itself.
    (r"Invalid value for (\S+): (?=\1 is )", ""),
)


def in_terminal_terms(message: str) -> str:
    """Replace the names of the library's settings in a message by those of options."""
    for pattern, text in _ADVISED:
        message = pattern.sub(lambda _, text=text: text, message)  # type: ignore[misc]
    message = _KIND.sub("", message)
    message = message.replace(" or pass api_key", " or pass --api-key-file")
    return _SETTING.sub(lambda match: _OPTIONS[match[0]], message)


def usage_text(message: str) -> str:
    """Say what is wrong with a command line in plain words."""
    for pattern, text in _USAGE:
        message = re.sub(pattern, text, message)
    return message
