"""A real Redis server for tests: a process of its own, on a free port, without a file on disk.

    with RedisServer(program, folder) as server:
        ledger = await open_redis(server.url(), host, key)
        server.pause()      # as a machine that hangs
        server.resume()
        server.restart()    # it has forgotten everything

`python -m tests.support.redis_server` prints the path of redis-server, or ends with 1 where there
is none.
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
    """The path of redis-server, if there is one."""
    return shutil.which("redis-server")


class RedisServer:
    """A server, gone after the block. `settings` are lines of redis.conf.

    With `tls` it speaks nothing else."""

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
        """Where it is, for somebody with `credentials`, "user:password@"."""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
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
        # One that wants a password answers too, and one that wants TLS is silent.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as found:
                if self._tls:
                    return True
                found.sendall(b"PING\r\n")
                return found.recv(1) in {b"+", b"-"}
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once; it remembers nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """End it and start it again, empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop it as it is: connections stay open, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, *command: str | int | bytes) -> Any:  # noqa: ANN401 - whatever Redis answers
        """Execute a command and return its answer."""
        with contextlib.closing(Redis(port=self.port, decode_responses=True)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def dump(self, name: str) -> bytes:
        """What a key holds, for `restore`."""
        with contextlib.closing(Redis(port=self.port)) as client:
            value = client.dump(name)
            assert isinstance(value, bytes)
            return value

    def restore(self, name: str, value: bytes) -> None:
        """Make a key again as it was."""
        self.call("RESTORE", name, 0, value)

    def names(self) -> list[str]:
        """The keys that it has."""
        return sorted(self.call("KEYS", "*"))


if __name__ == "__main__":
    found = installed()
    if found is None:
        sys.exit(1)
    print(found)
