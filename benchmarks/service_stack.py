"""The system under test of the service benchmarks: Valkey with its append-only file, the service, and a worker."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import redis

from sagittal.client import Client
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.settings import QueueSettings

HERE = Path(__file__).resolve().parent

#: Clock ticks per second: the unit of processor time in /proc.
TICKS = os.sysconf("SC_CLK_TCK")

#: Bytes per page: the unit of memory in /proc.
PAGE = os.sysconf("SC_PAGE_SIZE")

#: Timeout of a program's start, in seconds.
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Program:
    """A running process."""

    name: str
    pid: int

    def cpu_seconds(self) -> float:
        """Returns its processor time, including time in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_bytes(self) -> int:
        """Returns its resident memory, without pages shared with files."""
        _, resident, shared, *_ = map(int, Path(f"/proc/{self.pid}/statm").read_text().split())
        return (resident - shared) * PAGE


@dataclass(slots=True)
class Stack:
    """One installation."""

    address: str
    settings: QueueSettings
    programs: list[Program] = field(default_factory=list)

    def redis(self) -> "redis.Redis":
        """Returns a client of the server beneath."""
        return redis.Redis.from_url(self.settings.url)

    def cpu_seconds(self) -> Mapping[str, float]:
        """Returns the processor time of each process."""
        return {program.name: program.cpu_seconds() for program in self.programs}


def free_port() -> int:
    """Returns a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_stack(
    worker: list[str],
    *,
    model: str,
    environment: Mapping[str, str] | None = None,
    redis_options: tuple[str, ...] = (),
    token: str | None = None,
) -> Iterator[Stack]:
    """Runs an installation whose worker is the given command, from when the model is ready.

    Args:
        worker: The worker's program and its arguments, after `python`.
        model: Name of the model to wait for.
        environment: Additional variables of both programs.
        redis_options: Additional options of Valkey's command line.
        token: Bearer token for the service.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        EmbeddedValkey(directory, persist=True, options=redis_options) as server,
        contextlib.ExitStack() as stop,
    ):
        address = f"127.0.0.1:{free_port()}"
        variables = {
            **os.environ,
            "SAGITTAL_QUEUE__URL": server.url,
            "SAGITTAL_METRICS_PORT": "0",
            "SAGITTAL_LOG_LEVEL": "warning",
            "SAGITTAL_LISTEN": address,
            **(environment or {}),
        }
        stack = Stack(address, QueueSettings(url=server.url), [Program("Redis (Valkey)", server.pid)])
        for name, command in (("service", ["-m", "sagittal.server.main"]), ("worker", worker)):
            process = subprocess.Popen([sys.executable, *command], env=variables)
            stop.callback(process.wait, PATIENCE)
            stop.callback(process.terminate)
            stack.programs.append(Program(name, process.pid))
        _wait_for(address, model, token)
        yield stack


def _wait_for(address: str, model: str, token: str | None) -> None:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE)
    until = time.monotonic() + PATIENCE
    with Client(address, token=token) as client:
        while not any(each.name == model and each.ready_workers for each in client.models()):
            if time.monotonic() > until:
                raise SystemExit(f"no worker with {model} within {PATIENCE:g} s")
            time.sleep(0.1)
