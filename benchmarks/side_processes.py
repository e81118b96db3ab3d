"""The sides of a comparison, each in a process of its own: a line of text asks, a JSON object on one line answers."""

import json
import subprocess
from typing import Any


def ask(side: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """Sends a line to a side and returns its answer."""
    send(side, line)
    return read(side)


def send(side: subprocess.Popen[str], line: str) -> None:
    """Sends a line to a side."""
    assert side.stdin is not None
    side.stdin.write(f"{line}\n")
    side.stdin.flush()


def read(side: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns the next answer of a side; lines that libraries print are skipped."""
    assert side.stdout is not None
    for line in side.stdout:
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise RuntimeError("a side of the comparison ended; its error is above")
