"""Every method that a model's capabilities admit explains it, whatever its architecture; the others say why not."""

from functools import cache

import pytest
import torch

from sagittal.engine import Budget, Engine, Task
from sagittal.explain import EXPLAINERS, Metrics, Question, explain
from sagittal.explain.seam import Curve, GraphNode, SaliencyMask, SufficientSet
from sagittal.models.entry import ModelEntry
from sagittal.models.loading import LoadedModel, load
from sagittal.models.preprocessing import black
from sagittal.worker.catalogue import describe_model

SIZE = 64
"""Side of the images in pixels: the architectures are as they are, and small images keep the tests short."""

ARCHITECTURES = {
    "resnet50": {},
    "mobilenet_v3_large": {},
    "convnext_tiny": {},
    "vit_b_16": {"image_size": SIZE},
    "swin_t": {},
}

REDUCED = {
    "igos": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "igos+": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "igos++": {"iterations": 1, "mask_size": 8, "points": 2, "levels": 1},
    "meaningful-perturbation": {"iterations": 2, "mask_size": 8},
    "rise": {"masks": 8},
    "occlusion": {"grid": 3, "window": 1},
    "integrated-gradients": {"steps": 4, "mask_size": 8},
    "mse": {"grid": 3},
    "sag": {"grid": 3},
}
"""Parameters that make a method short."""

UNDEFINED = {
    "mobilenet_v3_large": {"excitation-bp"},
    "convnext_tiny": {"excitation-bp"},
    "vit_b_16": {"excitation-bp"},
    "swin_t": {"excitation-bp"},
}
"""Methods that are not defined for an architecture: gates and smooth activations have no rule."""


@cache
def loaded(name: str) -> LoadedModel:
    torch.set_num_threads(1)
    arguments = {"num_classes": 10, **ARCHITECTURES[name]}
    source = {"kind": "python", "factory": f"torchvision.models:{name}", "arguments": arguments}
    entry = ModelEntry(name=name.replace("_", "-"), source=source, preprocessing={"input_size": SIZE, "fit": "squash"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load(entry, torch.device("cpu"), batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    loaded.cache_clear()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    pytest.importorskip("torchvision")
    return request.param


def test_every_method_that_is_admitted_explains(architecture):
    model = loaded(architecture)
    refused = {method.name: method.unavailable for method in describe_model(model).methods if method.unavailable}
    assert set(refused) == UNDEFINED.get(architecture, set()), refused
    for name in EXPLAINERS.keys() - refused.keys() - {"concepts"}:  # those are fitted to a model first
        events, ends = explained(model, name)
        assert ends == [None], (name, ends)
        told = [event for event in events if isinstance(event, SaliencyMask | SufficientSet | GraphNode | Curve)]
        assert told, f"{name} found nothing to say"


def test_what_is_found_fits_the_architecture(architecture):
    found = loaded(architecture).found
    assert found.supports_gradients
    assert found.classes == 10
    assert found.spatial_layers
    assert found.patch_grid == {"vit_b_16": (4, 4), "swin_t": (16, 16)}.get(architecture)
    low, high = found.input_limits
    assert (low, high) == (SIZE, SIZE) if architecture == "vit_b_16" else low < SIZE < high
    assert loaded(architecture).activation_bytes > 8 * 3 * SIZE * SIZE * 4


def explained(model, name):
    """Returns the events and the end of an explanation that is cut short."""
    parameters = dict(REDUCED.get(name, {}))
    if name == "evaluate-mask":
        parameters["heatmap"] = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    question = Question(image=image, black=black(model.entry.preprocessing))
    metrics = Metrics(curves=name == "evaluate-mask", steps=4)
    events, ends = [], []
    task = Task(
        steps=explain(question, EXPLAINERS[name].explainer(**parameters), metrics),
        on_event=events.append,
        on_end=ends.append,
        budget=Budget(evaluations=24),
    )
    Engine(model.evaluator, batch_size=8).run(task)
    return events, ends
