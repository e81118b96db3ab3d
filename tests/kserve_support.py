"""KServe's own ModelServer and clients, in their environment, and the explainer as a process."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from e2e_stack import PATIENCE, free_port, wait_until
from peers_support import ENVIRONMENT, ROOT, program

#: Longest time until an explainer is ready, in seconds: four programs start, on a machine that others use.
STARTING = 300.0

PEER = ROOT / "tests" / "peers" / "kserve_peer.py"


@dataclass(slots=True)
class Peer:
    """A process with KServe's clients, and its ModelServer if it has ports."""

    process: "subprocess.Popen[str]"
    http: int
    grpc: int

    def ask(self, do: str, **arguments: Any) -> Any:
        """Calls a function of `peers/kserve_peer.py`. Raises AssertionError with its error."""
        answer = self.answer(do, **arguments)
        assert "found" in answer, answer["error"]
        return answer["found"]

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Calls a function; returns what it found, or its error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def kserve_peer(log: Path, *, serving: bool = True) -> Iterator[Peer]:
    """Runs KServe's programs; skips the test where they are not installed, and fails it in CI."""
    program("mlserver")  # it is installed with them
    ports = (free_port(), free_port()) if serving else (0, 0)
    command = [str(ENVIRONMENT / "bin" / "python"), str(PEER), *map(str, ports)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        yield Peer(process, *ports)
    finally:
        process.kill()
        process.communicate()


@dataclass(slots=True)
class Explainer:
    """The explainer as a process."""

    process: "subprocess.Popen[bytes]"
    log: Path
    http: int
    grpc: int

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return f"http://127.0.0.1:{self.http}"

    def stop(self) -> int:
        """Sends SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


@contextmanager
def explainer(log: Path, arguments: Sequence[str], **environment: str) -> Iterator[Explainer]:
    """Runs `sagittal-kserve` as KServe does: its own arguments come after those of the container."""
    http, grpc = free_port(), free_port()
    command = [sys.executable, "-m", "sagittal.kserve.start", *arguments, "--http_port", str(http)]
    variables = {
        **os.environ,
        "SAGITTAL_KSERVE_GRPC_PORT": str(grpc),
        "SAGITTAL_KSERVE_LISTEN_HOST": "127.0.0.1",
        "NO_COLOR": "1",
        "SAGITTAL_THREADS": "1",
        **environment,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables)
    found = Explainer(process, log, http, grpc)
    try:
        yield found
    finally:
        process.kill()
        process.wait(PATIENCE)


def await_ready(peer: Peer, found: Explainer, name: str) -> None:
    """Returns when KServe's clients find every readiness of the explainer."""

    def ready() -> bool:
        assert found.process.poll() is None, found.log.read_text()
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"{found.url}/v2/health/ready", retries=False).status == 200
        return False

    wait_until(ready, "the explainer is ready", STARTING)
    assert peer.ask("ready", url=found.url, model=name) == [True] * 5
