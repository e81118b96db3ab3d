"""The authors' protocol, for comparison: what may be spared of it changes nothing but the bill."""

from dataclasses import dataclass

import known_models
import pytest
import torch
from known_models import LEFT, RIGHT, LooksAtRegions

from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.explain import IGOS, Explainer, IGOSPlus, IGOSPlusPlus, Metrics, Question, explain
from sagittal.explain.authors import AUTHORS, Spared, authors_masks
from sagittal.explain.events import SaliencyMask


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparing(Explainer):
    """The authors' protocol that leaves out what decides nothing."""

    method: IGOS | IGOSPlus | IGOSPlusPlus
    spared: Spared

    def explain(self, problem):
        form = AUTHORS[type(self.method).__name__]
        yield SaliencyMask(1 - (yield from authors_masks(problem, self.method, form, self.spared)))


def run(explainer):
    torch.set_num_threads(1)
    events, ends = [], []
    evaluator = TorchEvaluator(module=LooksAtRegions(LEFT).eval(), device=torch.device("cpu"))
    question = Question(image=known_models.image(LEFT, RIGHT), target=1)
    task = Task(steps=explain(question, explainer, Metrics(curves=False)), on_event=events.append, on_end=ends.append)
    Engine(evaluator).run(task)
    assert ends == [None], ends
    saliency = next(event.saliency for event in events if isinstance(event, SaliencyMask) and event.final)
    return saliency, task.usage.evaluations


@pytest.mark.parametrize("method", [IGOS, IGOSPlus, IGOSPlusPlus])
def test_trials_that_are_lost_already_can_be_left_out(method):
    spared = Spared()
    published = method(mask_size=7, protocol="authors")
    whole, evaluations = run(published)
    short, fewer = run(Sparing(method=published, spared=spared))
    assert torch.equal(whole, short)
    assert fewer + spared.evaluations == evaluations
    assert spared.evaluations > 0
