"""Models that kill, hang or fill their process, and what the tests ask of their workers."""

import json

import known_models
import numpy as np
from e2e_stack import PATIENCE, Program, wait_until

from sagittal.client import Client, Job, Occlusion

MODEL = """
[[models]]
name = "{name}"
source = {{ kind = "python", factory = "deadly_models:{factory}" }}
labels = ["nothing", "left"]
preprocessing = {{ input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }}
"""

PICTURE = (np.clip(known_models.image(known_models.LEFT).permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)
RED = np.zeros((56, 56, 3), np.uint8)
RED[..., 0] = 255

QUICK = Occlusion(window=1, grid=2)
ENDED = ("completed", "failed", "cancelled")


def model(factory: str, name: str = "deadly") -> str:
    """Returns the entry of a model of `deadly_models`."""
    return MODEL.format(name=name, factory=factory)


def events_of(program: Program, event: str) -> list[dict]:
    """Returns the lines of a program's log about one kind of event."""
    lines = [line for line in program.text.splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each["event"] == event]


def wait_for_end(client: Client, *job_ids: str, seconds: float = PATIENCE) -> list[Job]:
    """Returns the jobs once all have ended."""
    wait_until(lambda: all(client.job(each).state in ENDED for each in job_ids), "the jobs to end", seconds)
    return [client.job(each) for each in job_ids]


def states(client: Client, name: str) -> list[tuple[str, str]]:
    """Returns the state of a model on each worker, with its message."""
    return [(worker.state, worker.message) for worker in client.model(name).workers]
