"""A TCP proxy that can be cut, to break the network of some clients only.

with Proxy(server.port) as proxy:
    client = Client(key, share=f"redis://127.0.0.1:{proxy.port}")
    proxy.cut()         # connections end, also new ones
    proxy.silence()     # data are dropped, and connections stay open
    proxy.mend()
"""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards a port of this machine to the port `to`, in its own thread."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._state = "whole"
        self._loop: asyncio.AbstractEventLoop
        self._started, self._over = threading.Event(), asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def cut(self) -> None:
        """Close all connections, and each new one at once."""
        self._set("cut")

    def silence(self) -> None:
        """Keep all connections open, and drop the data that is written to them."""
        self._set("silent")

    def mend(self) -> None:
        """Forward again; connections that were silenced are closed."""
        self._set("whole")

    def _set(self, state: str) -> None:
        asyncio.run_coroutine_threadsafe(self._change(state), self._loop).result()

    async def _change(self, state: str) -> None:
        self._state = state
        if state != "silent":
            for writer in self._open:
                writer.close()
            self._open.clear()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with await asyncio.start_server(self._serve, sock=self._listening):
            self._started.set()
            await self._over.wait()
            await self._change("cut")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        if self._state == "cut":
            writer.close()
            return
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            self._open.add(back)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._state == "whole":
                    writer.write(data)
        writer.close()
