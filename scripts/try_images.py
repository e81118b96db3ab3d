#!/usr/bin/env python3
"""Starts the images as production does (read-only, no capabilities, no rights) and explains a picture through them."""

import argparse
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sagittal.client import Client, SagittalError
from sagittal.runtime.embedded import EmbeddedValkey

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "clients" / "sagittal" / "cli" / "models.toml"
PICTURE = ROOT / "examples" / "images" / "chelsea.png"

#: Longest time that anything may take to be ready, in seconds: importing torch from a cold disk is slow.
PATIENCE = 240.0
#: Time that a container has between SIGTERM and SIGKILL, in seconds.
GRACE = 60

HARDENED = (
    "--network=host",
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:rw,size=256m",
)


@contextmanager
def container(engine: str, image: str, environment: dict[str, str], *options: str) -> Iterator[str]:
    """Runs an image, hardened; afterwards stops it and insists on exit code 0."""
    name = f"sagittal-try-{secrets.token_hex(4)}"
    settings = [f"--env={key}={value}" for key, value in environment.items()]
    subprocess.run([engine, "run", "--detach", "--name", name, *HARDENED, *settings, *options, image], check=True)
    try:
        yield name
        began = time.monotonic()
        subprocess.run([engine, "stop", "--time", str(GRACE), name], check=True, stdout=subprocess.DEVNULL)
        shown = subprocess.check_output([engine, "inspect", "--format", "{{.State.ExitCode}}", name], text=True)
        report(f"{image} stopped within {time.monotonic() - began:.1f} s with status {shown.strip()}")
        if shown.strip() != "0":
            raise SystemExit(f"{image} did not stop cleanly")
    except BaseException:
        subprocess.run([engine, "logs", name], check=False)
        raise
    finally:
        subprocess.run([engine, "rm", "--force", name], check=False, stdout=subprocess.DEVNULL)


def report(text: str) -> None:
    """Tells the reader of the build's log."""
    sys.stdout.write(f"try_images: {text}\n")
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Returns when the condition holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(0.5)


def answers(client: Client) -> bool:
    """Whether the service and its queue can be reached."""
    try:
        client.models()
    except SagittalError:
        return False
    return True


def is_ready(client: Client, model: str) -> bool:
    """Whether a worker can run the model."""
    try:
        found = [known for known in client.models() if known.name == model]
    except SagittalError:
        return False
    return any(worker.state == "ready" for known in found for worker in known.workers)


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Tries the images that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--engine", "--service"):
        parser.add_argument(option, required=True)
    parser.add_argument("--worker", default="", help="none if not given: then the service alone is tried")
    images = parser.parse_args()
    with ExitStack() as stack:
        valkey = stack.enter_context(EmbeddedValkey(port=free_port()))
        address = f"127.0.0.1:{free_port()}"
        common = {"SAGITTAL_QUEUE__URL": valkey.url, "SAGITTAL_METRICS_HOST": "127.0.0.1"}
        service = {**common, "SAGITTAL_LISTEN": address, "SAGITTAL_METRICS_PORT": str(free_port())}
        stack.enter_context(container(images.engine, images.service, service))
        client = stack.enter_context(Client(address))
        wait_for(lambda: answers(client), "a service that answers")
        report("the service answers")
        if not images.worker:
            report("no worker was built, so nothing is explained")
            return
        worker = {**common, "SAGITTAL_METRICS_PORT": str(free_port())}
        models = f"--volume={MODELS}:/etc/sagittal/models.toml:ro"
        stack.enter_context(container(images.engine, images.worker, worker, models))
        wait_for(lambda: is_ready(client, "efficientnet-lite0"), "a worker with its model")
        report("the worker is ready")
        explanation = client.explain(PICTURE, model="efficientnet-lite0")
        report(f"explained {PICTURE.name}: {explanation.state}")


if __name__ == "__main__":
    main()
