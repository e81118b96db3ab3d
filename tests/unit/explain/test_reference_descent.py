"""The reference implementations: what may be spared of them changes nothing but the number of evaluations."""

import known_models
import pytest
import torch
from known_models import LEFT, RIGHT, LooksAtRegions
from reference.descent import FORMS, ReferenceDescent, Spared

from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.explain import Metrics, Question, explanation_steps
from sagittal.explain.events import SaliencyMask


def run(explainer):
    torch.set_num_threads(1)
    events, ends = [], []
    evaluator = TorchEvaluator(module=LooksAtRegions(LEFT).eval(), device=torch.device("cpu"))
    question = Question(image=known_models.image(LEFT, RIGHT), target=1)
    task = Task(
        steps=explanation_steps(question, explainer, Metrics(curves=False)), on_event=events.append, on_end=ends.append
    )
    Engine(evaluator).run(task)
    assert ends == [None], ends
    saliency = next(event.saliency for event in events if isinstance(event, SaliencyMask) and event.final)
    return saliency, task.usage.evaluations


@pytest.mark.parametrize("form", FORMS)
def test_trials_that_are_lost_already_can_be_left_out(form):
    spared = Spared()
    whole, evaluations = run(ReferenceDescent(form=form, mask_size=7))
    short, fewer = run(ReferenceDescent(form=form, mask_size=7, spared=spared))
    torch.testing.assert_close(whole, short, atol=1e-6, rtol=0)
    assert fewer + spared.evaluations == evaluations
    assert spared.evaluations > 0
