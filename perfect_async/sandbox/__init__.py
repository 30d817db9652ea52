"""A simulation of the vendor's API, inside the process or on a port.

    sandbox = Sandbox()
    client = Client("sandbox-key", transport=sandbox.transport())

It is written from the contract page only and imports nothing else of this package, so that the
client and the sandbox cannot share a mistake, such as a misread field name.
"""

from __future__ import annotations

try:
    import PIL
    import starlette
    import uvicorn
except ImportError as error:
    raise ImportError(
        f"perfect_async.sandbox needs {error.name}, which is not installed: "
        "pip install 'perfect_async[sandbox]'",
        name=error.name,
    ) from error

from ._app import Sandbox
from ._billing import Grant
from ._charges import Ledger, LogEntry, TaskRecord, WebhookRecord
from ._dialect import Dialect
from ._engine import Durations
from ._faults import ENGINE_ERROR_CODES, KINDS, Faults, Scripted
from ._portraits import portrait
from ._server import run, serve
from ._webhooks import WebhookFaults

del PIL, starlette, uvicorn

__all__ = [
    "ENGINE_ERROR_CODES",
    "KINDS",
    "Dialect",
    "Durations",
    "Faults",
    "Grant",
    "Ledger",
    "LogEntry",
    "Sandbox",
    "Scripted",
    "TaskRecord",
    "WebhookFaults",
    "WebhookRecord",
    "portrait",
    "run",
    "serve",
]

# The `__module__` of each object is the package that users import it from, not its file.
for _thing in [value for name, value in globals().items() if name in __all__]:
    if callable(_thing):
        _thing.__module__ = __name__
