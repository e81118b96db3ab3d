"""Certificates that are tested on altered images, from the client to a worker and back."""

import numpy as np
from known_models import LEFT, checkerboard

from sagittal.client import Client, Metrics, MinimalSufficientExplanations, RobustnessTest


def subject() -> np.ndarray:
    """Returns an image of 8-bit pixels: what the model looks at, on grey."""
    pixels = np.full((56, 56, 3), 128, np.uint8)
    top, left, bottom, right = LEFT
    board = (checkerboard().numpy()[top:bottom, left:right, None] + 1) * 127.5
    pixels[top:bottom, left:right] = board.astype(np.uint8)
    return pixels


def test_a_certificate_is_tested_on_altered_images(client: Client):
    # One given background holds the evidence itself: there, sets with one patch less are sufficient too.
    test = RobustnessTest(delta=0.5, max_draws=12, images=[subject()])
    explanation = client.explain(
        subject(),
        model="left",
        target=1,
        method=MinimalSufficientExplanations(grid=4),
        metrics=Metrics(robustness=test),
    )
    found = explanation.sufficient_sets[0]
    robust = found.certificate.robust
    assert robust is not None
    assert robust.survives == {"rounding": True, "jpeg": True, "shift": False}
    tally = {each.kind: each for each in robust.backgrounds}
    assert sum(each.draws for each in tally.values()) == robust.minimal.draws <= 12
    assert all(each.minimal == each.draws for kind, each in tally.items() if kind != "image")
    assert robust.minimal.held == sum(each.minimal for each in tally.values())
    assert explanation.completed is not None
    assert explanation.completed.metric_evaluations >= 6 * (1 + len(found.patches.patches)) + robust.minimal.draws
