"""The whole system as real processes: an embedded Valkey, the service, and a worker with the real model."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sagittal.client import Client, Model

REAL_MODEL = """
[[models]]
name = "efficientnet-lite0"
source = { kind = "efficientnet-lite", variant = 0 }
labels = "imagenet-1k"
preprocessing = { input_size = 224, fit = "squash", mean = [0.498, 0.498, 0.498], std = [0.502, 0.502, 0.502] }
"""

KNOWN_MODEL = """
[[models]]
name = "left"
source = { kind = "python", factory = "known_models:looks_at_left" }
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""

BROKEN_MODEL = """
[[models]]
name = "broken"
source = { kind = "torchvision", model = "no-such-model" }
"""

#: Longest time that anything here may take to start or to end, in seconds; a loaded machine is slow.
PATIENCE = 300.0


def promised_tolerance(model: Model) -> float:
    """Returns how far results of equal jobs may be apart: not at all if the worker reports equal rows."""
    equal = any(step.name == "equal-rows" and step.applied for step in model.optimizations)
    return 0.0 if equal else 1e-3


def free_port() -> int:
    """Returns a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition, what: str, seconds: float = PATIENCE) -> None:
    """Returns when the condition holds; fails after the given time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@dataclass(slots=True)
class Program:
    """A process with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text()


@dataclass(slots=True)
class Stack:
    """The processes of one installation."""

    directory: Path
    url: str
    prefix: str = field(default_factory=lambda: f"e2e-{secrets.token_hex(4)}")
    address: str = ""
    programs: list[Program] = field(default_factory=list)

    def start(self, module: str, **environment: str) -> Program:
        """Starts `python -m module` on this installation's queue."""
        name = f"{module.split('.')[1]}-{len(self.programs)}"
        log = self.directory / f"{name}.log"
        tests = str(Path(__file__).parent)
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "SAGITTAL_QUEUE__URL": self.url,
            "SAGITTAL_QUEUE__PREFIX": self.prefix,
            "SAGITTAL_QUEUE__LEASE_SECONDS": "3",
            "SAGITTAL_QUEUE__HEARTBEAT_SECONDS": "0.3",
            "SAGITTAL_METRICS_PORT": "0",
            "SAGITTAL_LOG_FORMAT": "json",
            "SAGITTAL_THREADS": "1",  # several workers share the machine: threads that wait for each other burn it
            **environment,
        }
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", module], env=variables, stderr=output, stdout=output)
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    def start_service(self, **environment: str) -> Program:
        """Starts the service and waits until it answers."""
        self.address = self.address or f"127.0.0.1:{free_port()}"
        service = self.start("sagittal.server.main", SAGITTAL_LISTEN=self.address, **environment)
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE)
        return service

    def start_worker(self, *, models: str = KNOWN_MODEL, **environment: str) -> Program:
        """Starts a worker; it loads its models in the background."""
        file = self.directory / f"models-{len(self.programs)}.toml"
        file.write_text(models)
        return self.start("sagittal.worker.start", SAGITTAL_MODELS_FILE=str(file), **environment)

    def wait_for_model(self, name: str) -> None:
        """Returns when a worker has the model ready."""
        with Client(self.address) as client:

            def ready() -> bool:
                for program in self.programs:
                    assert program.process.poll() is None, f"{program.name} died: {program.text[-2000:]}"
                models = [model for model in client.models() if model.name == name]
                return any(worker.state == "ready" for model in models for worker in model.workers)

            wait_until(ready, f"a worker with {name}")

    def stop(self) -> None:
        """Stops what runs, workers first."""
        for program in reversed(self.programs):
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait(PATIENCE)
