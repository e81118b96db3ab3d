#!/usr/bin/env python3
"""Starts the images as production does (read-only, no capabilities, no rights) and explains a picture through them."""

import argparse
import json
import secrets
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sagittal.client import Client, SagittalError
from sagittal.process.embedded import EmbeddedValkey

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "clients" / "sagittal" / "cli" / "models.toml"
PICTURE = ROOT / "examples" / "images" / "chelsea.png"

#: Time that the program in a container has until its probes answer, and again until it is ready, in seconds: what the
#: chart's startup probe gives a worker, since importing torch from a cold disk is slow.
STARTUP = 600.0
#: Time between two looks, in seconds.
LOOK = 0.5
#: Time that a container has between SIGTERM and SIGKILL, in seconds: the shorter grace period of compose.yaml.
GRACE = 30
#: Lines of a container's log that an error shows.
SHOWN = 30

HARDENED = (
    "--network=host",
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:rw,size=256m",
)

#: Run within a container: what its first process may do.
CONFESSION = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
try:
    open("/opt/sagittal/written", "w").close()
    writes = True
except OSError:
    writes = False
facts = {name: status[name].split()[0] for name in ("Uid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs")}
print(json.dumps({**facts, "writes": writes}))
"""


class Disappointment(Exception):
    """An image does not do what it must."""


@dataclass(frozen=True, slots=True)
class Container:
    """A program that runs in a container."""

    engine: str
    image: str
    name: str
    metrics_port: int

    def lives(self) -> bool:
        """Whether its probe of liveness answers. Raises Disappointment where it has ended."""
        if self._ask("inspect", "--format", "{{.State.Running}}", self.name) != "true":
            raise Disappointment(f"{self.image} has ended by itself")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/livez", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check_rights(self) -> None:
        """Raises Disappointment where the first process has any right that it needs not."""
        facts = json.loads(self._ask("exec", self.name, "python", "-c", CONFESSION))
        nothing = "0" * 16
        wanted = {"Uid": "65532", "CapEff": nothing, "CapPrm": nothing, "CapBnd": nothing, "NoNewPrivs": "1"}
        if wrong := {name: value for name, value in facts.items() if value != wanted.get(name, False)}:
            raise Disappointment(f"{self.image} runs with {wrong}; expected {wanted}, and a root that is read-only")

    def stop(self) -> float:
        """Ends it by SIGTERM. Returns the seconds that it took. Raises Disappointment where it had to be killed."""
        began = time.monotonic()
        self._ask("stop", "--time", str(GRACE), self.name)
        status = self._ask("inspect", "--format", "{{.State.ExitCode}}", self.name)
        if status != "0":
            raise Disappointment(f"{self.image} ended with status {status} at SIGTERM and {GRACE} s; expected 0")
        return time.monotonic() - began

    def log(self) -> str:
        """Returns the end of what it said."""
        command = [self.engine, "logs", "--tail", str(SHOWN), self.name]
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    def _ask(self, *command: str) -> str:
        return subprocess.check_output([self.engine, *command], text=True).strip()


@contextmanager
def container(engine: str, image: str, environment: Mapping[str, str], *options: str) -> Iterator[Container]:
    """Runs an image, hardened, until its probe answers; afterwards stops it. Shows its log where anything fails."""
    port = free_port()
    started = Container(engine, image, f"sagittal-try-{secrets.token_hex(4)}", port)
    settings = {**environment, "SAGITTAL_METRICS_HOST": "127.0.0.1", "SAGITTAL_METRICS_PORT": str(port)}
    named = [f"--env={key}={value}" for key, value in settings.items()]
    command = [engine, "run", "--detach", "--name", started.name, *HARDENED, *named, *options, image]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        took = wait_for(started.lives, f"a probe of {image} that answers")
        started.check_rights()
        report(f"{image} lives after {took:.1f} s, read-only, without rights")
        yield started
        report(f"{image} stopped within {started.stop():.1f} s of SIGTERM with status 0")
    except BaseException:
        report(f"the last lines of {image}:\n{started.log()}")
        raise
    finally:
        subprocess.run([engine, "rm", "--force", started.name], check=False, stdout=subprocess.DEVNULL)


def report(text: str) -> None:
    """Tells the reader of the build's log."""
    sys.stdout.write(f"try_images: {text}\n")
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Returns the seconds until the condition held."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + STARTUP:
            raise Disappointment(f"not within {STARTUP:.0f} s: {what}")
        time.sleep(LOOK)
    return time.monotonic() - began


def answers(client: Client) -> bool:
    """Whether the service and its queue can be reached."""
    try:
        client.models()
    except SagittalError:
        return False
    return True


def is_ready(worker: Container, client: Client, model: str) -> bool:
    """Whether a worker can run the model."""
    if not worker.lives():
        return False
    try:
        found = [known for known in client.models() if known.name == model]
    except SagittalError:
        return False
    return any(hosting.state == "ready" for known in found for hosting in known.workers)


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def try_images(engine: str, service: str, worker: str) -> None:
    """Explains a picture through both, or reaches the service alone where there is no worker."""
    (model, *_) = tomllib.loads(MODELS.read_text())["models"]
    with ExitStack() as stack:
        queue = {"SAGITTAL_QUEUE__URL": stack.enter_context(EmbeddedValkey(port=free_port())).url}
        address = f"127.0.0.1:{free_port()}"
        stack.enter_context(container(engine, service, {**queue, "SAGITTAL_LISTEN": address}))
        client = stack.enter_context(Client(address))
        wait_for(lambda: answers(client), "a service that answers")
        report("the service answers")
        if not worker:
            report("no worker was built, so nothing is explained")
            return
        models = f"--volume={MODELS}:/etc/sagittal/models.toml:ro"
        running = stack.enter_context(container(engine, worker, queue, models))
        took = wait_for(lambda: is_ready(running, client, model["name"]), "a worker with its model")
        report(f"the worker has its model after {took:.1f} s more")
        explanation = client.explain(PICTURE, model=model["name"])
        if explanation.state != "completed":
            raise Disappointment(f"the explanation of {PICTURE.name} ended as {explanation.state}; expected completed")
        report(f"explained {PICTURE.name}: {explanation.state}")


def main() -> None:
    """Tries the images that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--engine", "--service"):
        parser.add_argument(option, required=True)
    parser.add_argument("--worker", default="", help="none if not given: then the service alone is tried")
    given = parser.parse_args()
    try:
        try_images(given.engine, given.service, given.worker)
    except Disappointment as error:
        sys.exit(f"try_images: {error}")


if __name__ == "__main__":
    main()
