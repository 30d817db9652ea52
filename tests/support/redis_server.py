"""A real Redis server for tests: a process on a free port, without a file on the disk.

    with RedisServer(program, folder) as server:
        ledger = await open_redis(server.url(), host, key)
        server.pause()      # like a machine that hangs
        server.resume()
        server.restart()    # its data are lost

`python -m tests.support.redis_server` prints the path of redis-server, or exits with 1 without one.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis

_PATIENCE = 20.0


def installed() -> str | None:
    """Return the path of redis-server, or None."""
    return shutil.which("redis-server")


class RedisServer:
    """A server that ends with the block. `settings` are lines of redis.conf.

    With `tls` it accepts only TLS.
    """

    def __init__(self, program: str, folder: Path, *, tls: bool = False, **settings: str) -> None:
        self._program = program
        self._folder = folder
        self._settings = settings
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def url(self, credentials: str = "") -> str:
        """Return the URL of the server, with `credentials` like "user:password@"."""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        ports = {"port": "0", "tls_port": str(self.port)} if self._tls else {"port": str(self.port)}
        quiet = {"save": "", "appendonly": "no", "bind": "127.0.0.1", "dir": str(self._folder)}
        command = [self._program]
        options = {**ports, **quiet, **self._settings}
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with (self._folder / f"redis-{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + _PATIENCE
        while not self._answers():
            assert time.monotonic() < until, "redis-server does not start"
            assert self._process.poll() is None, "redis-server has ended"
            time.sleep(0.01)

    def _answers(self) -> bool:
        # A server with a password answers, too; a server with TLS does not.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as found:
                if self._tls:
                    return True
                found.sendall(b"PING\r\n")
                return found.recv(1) in {b"+", b"-"}
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server; its data are lost."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Kill the server and start it again, without data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process: connections stay open without answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, *command: str | int | bytes) -> Any:  # noqa: ANN401 - any answer of Redis
        """Execute a command and return its answer."""
        with contextlib.closing(Redis(port=self.port, decode_responses=True)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def dump(self, name: str) -> bytes:
        """Return the value of a key for `restore`."""
        with contextlib.closing(Redis(port=self.port)) as client:
            value = client.dump(name)
            assert isinstance(value, bytes)
            return value

    def restore(self, name: str, value: bytes) -> None:
        """Create a key with a value of `dump`."""
        self.call("RESTORE", name, 0, value)

    def names(self) -> list[str]:
        """Return the names of all keys."""
        return sorted(self.call("KEYS", "*"))


if __name__ == "__main__":
    found = installed()
    if found is None:
        sys.exit(1)
    print(found)
