"""An installation to be broken: Redis with an append-only file, two services, three workers; who dies comes back."""

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from chaos.network import Proxy, Segment
from chaos.subjects import MODELS
from e2e_stack import PATIENCE, free_port, wait_until

from sagittal.client import Client, Options, Retry, SagittalError
from sagittal.process.embedded import EmbeddedValkey

#: Time after which a silent worker loses its jobs, in seconds; and what goes with it.
LEASE = 2.0
QUEUE = {
    "LEASE_SECONDS": str(LEASE),
    "HEARTBEAT_SECONDS": "0.25",
    "SWEEP_SECONDS": "0.2",
    "OPERATION_TIMEOUT": "2.0",
    "MAX_ATTEMPTS": "50",
    "RETRY_AFTER": "0.2",
}
PROGRAM = {
    "SAGITTAL_METRICS_PORT": "0",
    "SAGITTAL_LOG_FORMAT": "json",
    "SAGITTAL_CHECKPOINT_SECONDS": "0.1",
    "SAGITTAL_ANNOUNCE_SECONDS": "0.5",
    "SAGITTAL_HEALTH_INTERVAL": "0.5",
    "SAGITTAL_MAX_JOBS": "4",
    "SAGITTAL_BATCH_SIZE": "8",
    "SAGITTAL_THREADS": "1",
    "SAGITTAL_DEVICE": "cpu",
    "SAGITTAL_DRAIN": "10",
}


@dataclass(slots=True)
class Program:
    """One of the processes, in all its lives."""

    name: str
    kind: str
    environment: dict[str, str]
    namespace: str = ""
    fates: list[str] = field(default_factory=list)
    """What will happen to its next lives, the next one last."""
    lives: int = 0
    pid: int = 0
    kept: bool = True
    """Whether it is brought back when it ends."""

    @property
    def life(self) -> str:
        """Name of its present life."""
        return f"{self.name}-{self.lives}"


@dataclass(slots=True)
class Death:
    """The end of a life that nobody asked for, or its stopping."""

    life: str
    at: float
    signal: str


class World:
    """Everything that runs; a context manager that leaves nothing behind."""

    def __init__(self, directory: Path, *, seed: int, binary: str | None = None) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.prefix = f"chaos-{secrets.token_hex(4)}"
        self.no_segment = Segment.why_not()
        self.deaths: list[Death] = []
        self.statuses: dict[int, tuple[str, int]] = {}
        self.fallen: list[str] = []
        """Programs that ended by themselves, which none should."""
        self._binary = binary
        self._programs: dict[str, Program] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()

    def __enter__(self) -> "World":
        (self.directory / "valkey").mkdir(parents=True)
        self.segment = None if self.no_segment else Segment()
        self.port = free_port()
        addresses = ["127.0.0.1", *([self.segment.here] if self.segment else [])]
        self.server = EmbeddedValkey(
            self.directory / "valkey", port=self.port, persist=True, binary=self._binary,
            options=("--bind", *addresses, "--protected-mode", "no"),
        ).start()  # fmt: skip
        self.queue_proxies = [Proxy(self.port), Proxy(self.port)]
        (self.directory / "models.toml").write_text(MODELS)
        self._begin_nursery()
        self._add_programs()
        threading.Thread(target=self._wake_stopped, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._nursery.stdin is not None:
            self._nursery.stdin.close()
        self._nursery.wait(PATIENCE)
        self._listener.join(PATIENCE)
        if self._nursery.stdout is not None:
            self._nursery.stdout.close()
        for proxy in (*self.queue_proxies, self.door):
            proxy.close()
        self.server.stop()
        if self.segment:
            self.segment.close()

    @property
    def address(self) -> str:
        """Both services, as gRPC has it."""
        return f"ipv4:127.0.0.1:{self.service_ports[0]},127.0.0.1:{self.door.port}"

    def client(self, *, patience: float = 60.0) -> Client:
        """Returns a client of both services that does not give up."""
        retry = Retry(call_seconds=patience, stream_seconds=patience, longest_wait=0.5)
        return Client(self.address, options=Options(retry=retry, timeout=10.0))

    @property
    def workers(self) -> list[Program]:
        """The workers."""
        return [program for program in self._programs.values() if program.kind == "worker"]

    @property
    def services(self) -> list[Program]:
        """The services."""
        return [program for program in self._programs.values() if program.kind == "service"]

    def start(self, program: Program) -> None:
        """Begins the next life of a program."""
        program.lives += 1
        environment = program.environment | {
            "SAGITTAL_WORKER_NAME": program.life,
            "CHAOS_JOURNAL": str(self.directory / f"{program.life}.journal"),
            "CHAOS_FATE": program.fates.pop() if program.fates else "",
        }
        order = {
            "name": program.name, "program": program.kind, "environment": environment,
            "log": str(self.directory / f"{program.name}.log"), "namespace": program.namespace,
        }  # fmt: skip
        with self._changed:
            self._programs[program.name] = program
            program.pid = 0
            self._nursery.stdin.write(json.dumps(order).encode() + b"\n")
            self._nursery.stdin.flush()

    def await_start(self, program: Program) -> int:
        """Returns the process of a program that was told to start."""
        with self._changed:
            assert self._changed.wait_for(lambda: program.pid, PATIENCE), f"{program.life} was not started"
            return program.pid

    def restart_killed(self, program: Program) -> None:
        """Kills a program, and returns when its next life has begun."""
        with self._changed:
            life = program.lives
            self._signal(self.await_start(program), signal.SIGKILL)
            assert self._changed.wait_for(lambda: program.lives > life, PATIENCE), f"{program.name} is not back"

    def destroy(self, program: Program) -> None:
        """Kills a program for good, where it has not ended by itself."""
        self._signal(self.await_start(program), signal.SIGKILL)

    def end(self, program: Program, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends a program for good, and returns its exit status."""
        with self._changed:
            program.kept = False  # one that is dying as we speak is not brought back after this
            pid = self.await_start(program)
            self._signal(pid, number)
            assert self._changed.wait_for(lambda: pid in self.statuses, PATIENCE), f"{program.life} does not end"
            return self.statuses[pid][1]

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it met its fate meanwhile
            os.kill(pid, number)

    def wait_until_ready(self) -> None:
        """Returns when every worker has the model ready, as both services see it."""
        lives = {worker.life for worker in self.workers}

        def ready() -> bool:
            assert not self.fallen, self.fallen
            try:
                with self.client(patience=1.0) as client:
                    found = {each.worker for each in client.model("left").workers if each.state == "ready"}
            except SagittalError:
                return False
            return lives <= found

        wait_until(ready, f"workers {lives} ready; see {self.directory}")

    def await_service(self, program: Program, port: int) -> None:
        """Returns when a service answers on its port."""
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ready = grpc.channel_ready_future(channel)
            wait_until(lambda: ready.done() or self.fallen, f"{program.name} to answer; see {self.directory}")
        assert not self.fallen, self.fallen

    def kill_server(self, away: float) -> None:
        """Kills Redis as a crash would, and starts it again on what it had written."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()
        time.sleep(away)
        self.server.start()

    def _add_programs(self) -> None:
        direct = f"redis://127.0.0.1:{self.port}/0"
        proxied = [f"redis://127.0.0.1:{proxy.port}/0" for proxy in self.queue_proxies]
        self.service_ports = [free_port(), free_port()]
        self.door = Proxy(self.service_ports[1])
        for number, url in enumerate((direct, proxied[0])):
            listen = {"SAGITTAL_LISTEN": f"127.0.0.1:{self.service_ports[number]}"}
            self.start(Program(f"service{number}", "service", self._environment(url) | listen))
        cut = f"redis://{self.segment.here}:{self.port}/0" if self.segment else direct
        for number, url in enumerate((direct, proxied[1], cut)):
            namespace = self.segment.namespace if self.segment and number == 2 else ""
            models = {"SAGITTAL_MODELS_FILE": str(self.directory / "models.toml")}
            self.start(Program(f"worker{number}", "worker", self._environment(url) | models, namespace))
        for service, port in zip(self.services, self.service_ports, strict=True):
            self.await_service(service, port)

    def _environment(self, url: str) -> dict[str, str]:
        queue = {f"SAGITTAL_QUEUE__{name}": value for name, value in QUEUE.items()}
        return PROGRAM | queue | {"SAGITTAL_QUEUE__URL": url, "SAGITTAL_QUEUE__PREFIX": self.prefix}

    def _begin_nursery(self) -> None:
        tests = str(Path(__file__).parents[1])
        path = os.pathsep.join(part for part in (tests, os.environ.get("PYTHONPATH", "")) if part)
        with (self.directory / "nursery.log").open("wb") as log:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "chaos.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Hears who started and who ended, and brings back those who should not have."""
        for line in self._nursery.stdout:
            said = json.loads(line)
            with self._changed:
                program = self._programs[said.get("started") or said["ended"]]
                if "started" in said:
                    program.pid = said["pid"]
                else:
                    self.statuses[said["pid"]] = (program.life, said["status"])
                    self._mourn(program, said)
                self._changed.notify_all()

    def _mourn(self, program: Program, said: dict[str, float]) -> None:
        if said["status"] < 0:
            self.deaths.append(Death(program.life, said["at"], signal.Signals(int(-said["status"])).name))
        elif program.kept:
            program.kept = False
            log = self.directory / f"{program.name}.log"
            self.fallen.append(
                f"{program.life} ended by itself with status {said['status']}: {log.read_text()[-2000:]}"
            )
        if program.kept and not self._closing.is_set():
            self.start(program)

    def _wake_stopped(self) -> None:
        """Lets a worker that stopped itself go on when its lease has passed."""
        while not self._closing.wait(0.05):
            for worker in self.workers:
                if worker.pid and _stopped(worker.pid):
                    self.deaths.append(Death(worker.life, time.time(), "SIGSTOP"))
                    self._closing.wait(1.5 * LEASE + 0.5)
                    os.kill(worker.pid, signal.SIGCONT)


def _stopped(pid: int) -> bool:
    """Whether a process is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False
