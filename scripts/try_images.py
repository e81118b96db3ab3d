#!/usr/bin/env python3
"""Runs the images as in production (read-only, without capabilities, unprivileged) and explains an image with them."""

import argparse
import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sagittal.cli.stack import MODELS_FILE, free_ports, model_names
from sagittal.client import Client, SagittalError
from sagittal.process.embedded import EmbeddedValkey

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "examples" / "images" / "chelsea.png"

#: Time until a container's probes answer, and again until it is ready, in seconds. It is the limit of the chart's
#: startup probe of a worker, because importing torch from a cold disk is slow.
STARTUP = 600.0
#: Time between two checks, in seconds.
LOOK = 0.5
#: Time between SIGTERM and SIGKILL, in seconds: the shorter grace period of compose.yaml.
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

#: Script run inside a container that prints the rights of its first process.
PRIVILEGES = """
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


class ImageFailed(Exception):
    """An image failed a test."""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container."""

    engine: str
    image: str
    name: str
    metrics_port: int

    def lives(self) -> bool:
        """Returns whether its liveness probe answers. Raises ImageFailed if it has ended."""
        if self._ask("inspect", "--format", "{{.State.Running}}", self.name) != "true":
            raise ImageFailed(f"{self.image} has ended by itself")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/livez", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check_rights(self) -> None:
        """Raises ImageFailed if the first process has unnecessary rights."""
        facts = json.loads(self._ask("exec", self.name, "python", "-c", PRIVILEGES))
        nothing = "0" * 16
        wanted = {"Uid": "65532", "CapEff": nothing, "CapPrm": nothing, "CapBnd": nothing, "NoNewPrivs": "1"}
        if wrong := {name: value for name, value in facts.items() if value != wanted.get(name, False)}:
            raise ImageFailed(f"{self.image} runs with {wrong}; expected {wanted}, and a read-only root")

    def stop(self) -> float:
        """Ends it by SIGTERM; returns the seconds that it took. Raises ImageFailed if it had to be killed."""
        began = time.monotonic()
        self._ask("stop", "--time", str(GRACE), self.name)
        status = self._ask("inspect", "--format", "{{.State.ExitCode}}", self.name)
        if status != "0":
            raise ImageFailed(f"{self.image} ended with status {status} at SIGTERM and {GRACE} s; expected 0")
        return time.monotonic() - began

    def log(self) -> str:
        """Returns the end of its log."""
        command = [self.engine, "logs", "--tail", str(SHOWN), self.name]
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    def _ask(self, *command: str) -> str:
        return subprocess.check_output([self.engine, *command], text=True).strip()


@contextmanager
def container(engine: str, image: str, environment: Mapping[str, str], *options: str) -> Iterator[Container]:
    """Yields a hardened container whose probe answers, and stops it afterwards. Prints its log on failure."""
    (port,) = free_ports(1)
    started = Container(engine, image, f"sagittal-try-{secrets.token_hex(4)}", port)
    settings = {**environment, "SAGITTAL_METRICS_HOST": "127.0.0.1", "SAGITTAL_METRICS_PORT": str(port)}
    named = [f"--env={key}={value}" for key, value in settings.items()]
    command = [engine, "run", "--detach", "--name", started.name, *HARDENED, *named, *options, image]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        took = wait_for(started.lives, f"an answer of the probe of {image}")
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
    """Prints a line to the build's log."""
    sys.stdout.write(f"try_images: {text}\n")
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Waits for the condition; returns the seconds until it held."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + STARTUP:
            raise ImageFailed(f"not within {STARTUP:.0f} s: {what}")
        time.sleep(LOOK)
    return time.monotonic() - began


def answers(client: Client) -> bool:
    """Returns whether the service and its queue answer."""
    try:
        next(client.models(), None)
    except SagittalError:
        return False
    return True


def is_ready(worker: Container, client: Client, model: str) -> bool:
    """Returns whether a worker has the model ready."""
    if not worker.lives():
        return False
    try:
        found = [known for known in client.models() if known.name == model]
    except SagittalError:
        return False
    return any(hosting.state == "ready" for known in found for hosting in known.workers)


def try_images(engine: str, service: str, worker: str) -> None:
    """Explains an image with both, or only calls the service if there is no worker."""
    model, *_ = model_names(MODELS_FILE)
    queue_port, service_port = free_ports(2)
    with ExitStack() as stack:
        queue = {"SAGITTAL_QUEUE__URL": stack.enter_context(EmbeddedValkey(port=queue_port)).url}
        address = f"127.0.0.1:{service_port}"
        stack.enter_context(container(engine, service, {**queue, "SAGITTAL_LISTEN": address}))
        client = stack.enter_context(Client(address))
        wait_for(lambda: answers(client), "a service that answers")
        report("the service answers")
        if not worker:
            report("no worker was built, so nothing is explained")
            return
        models = f"--volume={MODELS_FILE}:/etc/sagittal/models.toml:ro"
        running = stack.enter_context(container(engine, worker, queue, models))
        took = wait_for(lambda: is_ready(running, client, model), "a worker with its model")
        report(f"the worker has its model after {took:.1f} s more")
        explanation = client.explain(IMAGE, model=model)
        if explanation.state != "completed":
            raise ImageFailed(f"the explanation of {IMAGE.name} ended as {explanation.state}; expected completed")
        report(f"explained {IMAGE.name}: {explanation.state}")
        stack.enter_context(kserve_explainer(engine, worker))


@contextmanager
def kserve_explainer(engine: str, image: str) -> Iterator[None]:
    """Runs the explainer for KServe in the worker's image, until its own worker reports that no predictor answers."""
    http, grpc, absent = free_ports(3)
    name = f"sagittal-try-{secrets.token_hex(4)}"
    arguments = ["--model_name", "cats", "--predictor_host", f"127.0.0.1:{absent}", "--http_port", str(http)]
    command = [engine, "run", "--detach", "--name", name, *HARDENED, "--entrypoint=sagittal-kserve", image, *arguments]
    subprocess.run([*command, "--grpc_port", str(grpc)], check=True, stdout=subprocess.DEVNULL)
    try:
        took = wait_for(lambda: b"cannot be reached" in readiness(http), "a worker of the explainer for KServe")
        report(f"the explainer for KServe looks for its predictor after {took:.1f} s")
        yield
    finally:
        subprocess.run([engine, "rm", "--force", name], check=False, stdout=subprocess.DEVNULL)


def readiness(port: int) -> bytes:
    """Returns what the explainer for KServe says of its readiness; empty if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return bytes(error.read())
    except (urllib.error.URLError, OSError):
        return b""


def main() -> None:
    """Tests the images named in the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--engine", "--service"):
        parser.add_argument(option, required=True)
    parser.add_argument("--worker", default="", help="image of the worker; without it only the service is tested")
    given = parser.parse_args()
    try:
        try_images(given.engine, given.service, given.worker)
    except ImageFailed as error:
        sys.exit(f"try_images: {error}")


if __name__ == "__main__":
    main()
