"""Every method that a model's capabilities admit explains it, whatever its architecture; the others say why not."""

import os
from functools import cache

import pytest
import torch

from sagittal.core.models import ModelEntry
from sagittal.engine import Budget, Task
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.explain.events import Curve, GraphNode, SaliencyMask, SufficientSet
from sagittal.models import measuring
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.preprocessing import black
from sagittal.worker.hosting.description import describe_model

SIDES = {"resnet50": 64, "mobilenet_v3_large": 64, "convnext_tiny": 64, "vit_b_16": 32, "swin_t": 64}
"""Sides of the images in pixels: the architectures are as they are, and small images keep the tests short."""

WHOLE = os.environ.get("SAGITTAL_TEST_WHOLE", "") == "yes"
"""Whether all blocks of each stage are there: `make test-architectures`. Else those that hold each kind of block."""

ARGUMENTS = {"vit_b_16": {"image_size": SIDES["vit_b_16"]}}
"""What an architecture is made with, beside its classes."""

REDUCED = {
    "igos": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "igos+": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "igos++": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "meaningful-perturbation": {"iterations": 2, "mask_size": 8},
    "rise": {"masks": 4},
    "ordered-region-search": {"iterations": 1, "mask_size": 8, "regions": 4},
    "occlusion": {"grid": 2, "window": 1},
    "occlusion-surrogate": {"occlusions": 20},
    "score-cam": {"channels": 4},
    "integrated-gradients": {"steps": 2, "mask_size": 8},
    "minimal-sufficient-explanations": {"grid": 3},
    "structured-attention-graph": {"grid": 3},
    "evaluate-mask": {"heatmap": torch.rand(4, 4, generator=torch.Generator().manual_seed(0))},
}
"""Parameters that make a method short."""

EVALUATIONS = 12
"""Evaluations that each may use; a search that is cut short answers with what it has."""

UNDEFINED = {
    "mobilenet_v3_large": {"excitation-bp"},
    "convnext_tiny": {"excitation-bp"},
    "vit_b_16": {"excitation-bp"},
}
"""Methods that are not defined for an architecture: smooth activations, layer norms and class tokens have no rule."""


@cache
def loaded(name: str) -> LoadedModel:
    side = SIDES[name]
    arguments = {"architecture": name, "side": side, "classes": 10, "whole": WHOLE, **ARGUMENTS.get(name, {})}
    source = {"kind": "python", "factory": "random_networks:opinionated", "arguments": arguments}
    preprocessing = {"input_size": side, "fit": "squash"}
    entry = ModelEntry(name=name.replace("_", "-"), source=source, preprocessing=preprocessing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load(entry, torch.device("cpu"), batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def _loaded_once_and_measured_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "ROUNDS", 1)
        yield
    loaded.cache_clear()


@pytest.fixture(params=SIDES)
def architecture(request):
    return request.param


def test_every_method_that_is_admitted_explains(architecture):
    model = loaded(architecture)
    refused = {method.name: method.unavailable for method in describe_model(model).methods if method.unavailable}
    assert set(refused) == UNDEFINED.get(architecture, set()), refused
    names = EXPLAINERS.keys() - refused.keys() - {"concepts"}  # those are fitted to a model first
    for name, (events, ends) in explained(model, names).items():
        assert ends == [None], (name, ends)
        told = [event for event in events if isinstance(event, SaliencyMask | SufficientSet | GraphNode | Curve)]
        assert told, f"{name} found nothing to say"


def explained(model, names):
    """Returns the events and the end of each method's explanation; all share batches, as on a worker."""
    side = model.entry.preprocessing.input_size
    image = torch.randn(3, side, side, generator=torch.Generator().manual_seed(1))
    question = Question(image=image, black=black(model.entry.preprocessing))
    engine, said = model.engine(), {name: ([], []) for name in names}
    engine.batch_size = 16
    for name, (events, ends) in said.items():
        explainer = EXPLAINERS[name].explainer(**REDUCED.get(name, {}))
        metrics = Metrics(curves=name == "evaluate-mask", steps=4)
        steps = explanation_steps(question, explainer, metrics)
        budget = Budget(evaluations=EVALUATIONS)
        engine.submit(Task(steps=steps, on_event=events.append, on_end=ends.append, budget=budget))
    while engine.step():
        pass
    return said


def test_what_is_found_fits_the_architecture(architecture):
    found = loaded(architecture).found
    assert found.supports_gradients
    assert found.classes == 10
    assert found.spatial_layers
    assert found.patch_grid == {"vit_b_16": (2, 2), "swin_t": (16, 16)}.get(architecture)
    (low, high), side = found.input_limits, SIDES[architecture]
    assert (low, high) == (side, side) if architecture == "vit_b_16" else low < side < high
    assert loaded(architecture).activation_bytes > 4 * 3 * side * side * 4, "at least the batch itself"
