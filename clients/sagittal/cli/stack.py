"""Valkey, the service and a worker as three child processes of this one."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sagittal.cli.failures import UNREACHABLE, USAGE, Failure, ignoring_signals
from sagittal.client import Client, Model, SagittalError, WorkerState
from sagittal.core.errors import SagittalError as RuntimeFailure
from sagittal.process.embedded import EmbeddedValkey

#: Time for a process to end after SIGTERM, in seconds, before it is killed.
GRACE_SECONDS = 8.0
#: Number of log lines shown when a process died.
TAIL_LINES = 12
#: Maximum number of restarts within `RESTART_SECONDS`; beyond it, the stack fails.
RESTARTS, RESTART_SECONDS = 5, 60.0


@dataclass(slots=True)
class Restarts:
    """Times of restarts."""

    times: deque[float] = field(default_factory=deque)

    def allow(self) -> bool:
        """Returns whether another restart is allowed, and counts it."""
        now = time.monotonic()
        while self.times and now - self.times[0] > RESTART_SECONDS:
            self.times.popleft()
        if len(self.times) >= RESTARTS:
            return False
        self.times.append(now)
        return True


@dataclass(slots=True)
class Child:
    """One of our programs, which dies with this process."""

    name: str
    module: str
    environment: Mapping[str, str]
    log: Path
    restarts: Restarts = field(default_factory=Restarts)
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Starts the program; its log is truncated at the first start, and appended to at the others."""
        with self.log.open("wb" if self._process is None else "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, with arguments of our own
                [sys.executable, "-m", "sagittal.cli.child", str(os.getpid()), self.module],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is for this program, which then stops its children in order
            )

    @property
    def ending(self) -> str:
        """How the program ended, in words; empty while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def stop(self) -> None:
        """Terminates the process; kills it if it does not end in time."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        """The last lines of the log."""
        return tail(self.log)


def tail(log: Path) -> str:
    """Returns the last lines of a log, indented."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (its log is empty)"


#: Default models file.
MODELS_FILE = Path(__file__).with_name("models.toml")
#: Timeout until the service and the models are ready, in seconds: importing torch from a cold disk is slow.
READY_SECONDS = 180.0
#: Interval of readiness checks, in seconds.
LOOK_SECONDS = 0.1

SERVICE = "sagittal.v1.ExplanationService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes to start, with their addresses."""

    listen: str
    """Address of the service, host:port."""
    service_metrics: int
    """Port of the service's metrics; 0 for none."""
    worker_metrics: int
    """Port of the worker's metrics; 0 for none."""
    page: int = 0
    """Port of the page; 0 for none."""
    models_file: Path | None
    """Models to serve; None for those that are registered over the API."""
    state: Path | None = None
    """Directory that keeps jobs and logs; None for a temporary one."""
    worker: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the worker."""


@dataclass(slots=True)
class LocalStack:
    """A context manager around the three processes. They stop in the order worker, service, Valkey."""

    plan: Plan
    children: list[Child] = field(default_factory=list)
    directory: Path = Path()
    """Directory of the logs, while the stack runs."""
    _closing: ExitStack = field(default_factory=ExitStack)
    _valkey: EmbeddedValkey | None = None
    _valkey_restarts: Restarts = field(default_factory=Restarts)

    @property
    def queue_url(self) -> str:
        """Address of Valkey."""
        return self._valkey.url if self._valkey else ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except RuntimeFailure as error:
            self.stop()
            raise Failure(str(error)) from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops everything; returns when all processes have ended."""
        with ignoring_signals():
            self._closing.close()

    def check(self) -> None:
        """Raises a Failure with the end of the log of a process that died."""
        self._check_valkey()
        for child in self.children:
            if child.ending:
                raise Failure(f"the {child.name} {child.ending}; its log ends:\n{child.tail()}")

    def tend(self, say: Callable[[str], None]) -> None:
        """Restarts processes that died, and reports it. Raises a Failure if that was too often within a minute."""
        self._tend_valkey(say)
        for child in self.children:
            if child.ending and child.restarts.allow():
                say(f"the {child.name} {child.ending}; restarting it")
                child.start()
        self.check()

    def _tend_valkey(self, say: Callable[[str], None]) -> None:
        valkey = self._valkey
        if valkey is None or valkey.running or self.plan.state is None or not self._valkey_restarts.allow():
            return
        say("Valkey ended; restarting it on its stored data")
        try:
            valkey.stop()
            valkey.start()
        except RuntimeFailure as error:
            raise Failure(str(error)) from error

    def _check_valkey(self) -> None:
        if self._valkey is None or self._valkey.running:
            return
        lost = "" if self.plan.state is not None else ", and all jobs are lost: give --state DIR to keep them"
        raise Failure(f"Valkey ended{lost}; its log ends:\n{tail(self._valkey.log_file)}")

    def wait_for_service(self) -> None:
        """Returns when the service accepts requests."""
        with grpc.insecure_channel(self.plan.listen) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            self._wait(lambda: _serving(stub), "the service is not ready")

    def wait_for_models(self, client: Client, say: Callable[[str], None]) -> None:
        """Returns when every model of the file is ready; reports what it waits for."""
        for name in model_names(self.plan.models_file) if self.plan.models_file else ():
            say(f"loading model {name}")
            self._wait(lambda name=name: _loaded(client, name), f"model {name} is not loaded")  # type: ignore[misc]

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + READY_SECONDS
        while not done():
            self.check()
            if time.monotonic() > until:
                raise Failure(f"{otherwise} after {READY_SECONDS:.0f} s; see the logs in {self.directory}", UNREACHABLE)
            time.sleep(LOOK_SECONDS)

    def _start(self) -> None:
        _check_free(self.plan)
        temporary = tempfile.TemporaryDirectory(prefix="sagittal-", ignore_cleanup_errors=True)
        self.directory = self.plan.state or Path(self._closing.enter_context(temporary))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._valkey = EmbeddedValkey(self.directory, persist=self.plan.state is not None)
        self._closing.enter_context(self._valkey)
        common = {
            "SAGITTAL_QUEUE__URL": self.queue_url,
            "SAGITTAL_CONCEPTS__DIRECTORY": str((self.directory / "concepts").resolve()),
        }
        self._spawn("service", "sagittal.server.main", common | service_environment(self.plan))
        self._spawn("worker", "sagittal.worker.start", common | worker_environment(self.plan))

    def _spawn(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        child = Child(name, module, environment, self.directory / f"{name}.log")
        self.children.append(child)
        self._closing.callback(child.stop)
        child.start()


def service_environment(plan: Plan) -> dict[str, str]:
    """Returns the settings of the service. It drains briefly, because it is alone on its machine."""
    return {
        "SAGITTAL_LISTEN": plan.listen,
        "SAGITTAL_METRICS_PORT": str(plan.service_metrics),
        "SAGITTAL_DRAIN": "0.5",
        **(page_environment(plan) if plan.page else {}),
    }


def page_environment(plan: Plan) -> dict[str, str]:
    """Returns the settings of the page, which the service's process serves."""
    metrics = (plan.service_metrics, plan.worker_metrics)
    return {
        "SAGITTAL_PAGE": "true",
        "SAGITTAL_PAGE_LISTEN_PORT": str(plan.page),
        "SAGITTAL_PAGE_DRAIN": "0",
        "SAGITTAL_PAGE_METRICS": ",".join(f"http://127.0.0.1:{port}/metrics" for port in metrics if port),
    }


def worker_environment(plan: Plan) -> dict[str, str]:
    """Returns the settings of the worker."""
    return {
        "SAGITTAL_MODELS_FILE": str(plan.models_file.resolve()) if plan.models_file else "",
        "SAGITTAL_METRICS_PORT": str(plan.worker_metrics),
        "SAGITTAL_DRAIN": "0",
        **plan.worker,
    }


def free_ports(number: int) -> Sequence[int]:
    """Returns unused ports of 127.0.0.1, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def model_names(path: Path) -> Sequence[str]:
    """Returns the names in a models file. Raises a Failure if it cannot be read."""
    try:
        tables = tomllib.loads(path.read_text()).get("models", [])
        return list(dict.fromkeys(str(table["name"]) for table in tables))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}; name a models file with --models", USAGE) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path}: is no models file ([[models]] tables with a name): {error}", USAGE) from error


def _check_free(plan: Plan) -> None:
    """Raises a Failure for a port that is in use, which is clearer than the log of a failed start."""
    _, _, port = plan.listen.rpartition(":")
    if not port.isdigit():
        raise click.BadParameter(f"{plan.listen!r} is no address; give host:port", param_hint="--listen")
    wanted = (
        ("--listen", int(port)),
        ("--metrics-port", plan.service_metrics),
        ("--metrics-port", plan.worker_metrics),
        ("--page-port", plan.page),
    )
    for option, number in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError as error:
                text = f"port {number} is in use: Sagittal may already run; otherwise choose another with {option}"
                raise Failure(text, USAGE) from error


def _serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=2.0)  # type: ignore[attr-defined]
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _loaded(client: Client, name: str) -> bool:
    """Returns whether a worker is ready; raises a Failure if it could not load the model."""
    for worker in _workers(client, name):
        if worker.state == "failed":
            raise Failure(f"model {name} cannot be loaded: {worker.message}")
        if worker.state == "ready":
            return True
    return False


def _workers(client: Client, name: str) -> Iterator[WorkerState]:
    try:
        model: Model = client.model(name)
    except SagittalError:
        return  # no worker has reported the model yet
    yield from model.workers
