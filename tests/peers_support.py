"""Programs that others wrote, run as they are: MLServer, and an S3-compatible store."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_stack import wait_until

ROOT = Path(__file__).parents[1]

ENVIRONMENT = Path(os.environ.get("SAGITTAL_TEST_PEERS", ROOT / ".venv-peers"))
"""Where `make peers` installs them."""


def program(name: str) -> str:
    """Returns the path of a program; skips the test where it is not there, and fails it in CI."""
    path = ENVIRONMENT / "bin" / name
    if path.exists():
        return str(path)
    missing = f"{name} is not installed: make peers"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def running(command: list[str], log: Path, *, port: int, **options) -> Iterator[None]:
    """Runs a program until the context ends; returns when it listens."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)
    try:
        wait_until(lambda: _listens(port, process, log), f"{command[0]} listens")
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, f"it ended with status {process.returncode}:\n{log.read_text()}"
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
