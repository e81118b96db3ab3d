"""A worker is lost in the middle, another goes on from the last checkpoint, and nobody could tell from the result."""

import json
import signal
from itertools import pairwise

import numpy as np
import pytest
from deaths_support import model
from e2e_stack import promised_tolerance
from known_models import LEFT, image

from sagittal.client import Client, IGOSPlusPlus, ModelInput, Progress, Started

SLOW = model("Slow", "slow")
"""A model that waits in each step: a break that a busy machine delays is still a break in the middle."""

LONG = IGOSPlusPlus(mask_size=14, iterations=150, points=2, levels=0, tolerance=0)
OPTIONS = {"model": "slow", "target": 1, "method": LONG, "seed": 11, "cache": "bypass", "progress_interval": 0.0}

BREAKS = [(0.15, signal.SIGKILL), (0.35, signal.SIGTERM)]
"""When a worker is stopped, as a share of the job, and how: one dies, one hands its jobs back."""


def resumed_from(log: str) -> list[int]:
    """Returns the evaluations that each job had behind it which a worker took up again."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["evaluations"] for line in lines if line["event"] == "job-resumed"]


def test_the_result_of_a_run_that_was_broken_twice_is_that_of_an_undisturbed_one(private_stack):
    stack = private_stack
    stack.start_service()
    quick = {"SAGITTAL_CHECKPOINT_SECONDS": "0.05", "SAGITTAL_DRAIN": "0"}
    workers = [stack.start_worker(models=SLOW, **quick)]
    stack.wait_for_model("slow")
    subject = ModelInput(image(LEFT).numpy())
    attempts: list[list[float]] = []
    with Client(stack.address) as client:
        undisturbed = client.explain(subject, **OPTIONS)
        for event in client.stream(subject, **OPTIONS):
            if isinstance(event, Started):
                attempts.append([])
            if isinstance(event, Progress):
                attempts[-1].append(event.fraction)
                done = len(attempts) - 1
                if len(workers) == done + 1 <= len(BREAKS) and event.fraction > BREAKS[done][0]:
                    workers[done].stop(BREAKS[done][1])
                    workers.append(stack.start_worker(models=SLOW, **quick))
        broken = client.get(event.job_id)
        tolerance = promised_tolerance(client.model("slow"))
    np.testing.assert_allclose(broken.mask, undisturbed.mask, rtol=0, atol=tolerance)
    assert broken.insertion == pytest.approx(undisturbed.insertion, abs=tolerance)
    assert broken.deletion == pytest.approx(undisturbed.deletion, abs=tolerance)
    assert broken.evaluations == undisturbed.evaluations
    assert broken.gradient_evaluations == undisturbed.gradient_evaluations
    assert len(attempts) == 1 + len(BREAKS)
    assert all(after[0] > 0.5 * before[-1] for before, after in pairwise(attempts))
    behind = [resumed_from(worker.text) for worker in workers]
    assert [len(each) for each in behind] == [0, 1, 1]
    assert 0 < behind[1][0] < behind[2][0]
