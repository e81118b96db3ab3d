"""Features made of factors that are known, and fits to them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from known_models import SeesColours
from torch import Tensor, nn

from sagittal.engine import Engine, Output, Task, TorchEvaluator
from sagittal.explain.concepts import ConceptFit, FitQuestion, FitSettings, GivenImages, fit_concepts
from sagittal.explain.concepts.training import Examples, Fit, settle

SIZE = 16
"""Side of the images in pixels."""


@pytest.fixture
def sees_colours() -> nn.Module:
    return SeesColours().eval().requires_grad_(False)


@pytest.fixture
def pictures() -> Tensor:
    """Pictures whose halves have colours of their own."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(60, 3, 1, 2, generator=generator)
    pixels = colours.repeat_interleave(SIZE // 2, 3).expand(60, 3, SIZE, SIZE)
    return pixels + 0.02 * torch.randn(60, 3, SIZE, SIZE, generator=generator)


@pytest.fixture
def fit_network() -> Callable[..., Fit]:
    """Fits a network to features and outputs, its x-features settled."""

    def fit(features: Tensor, outputs: Tensor, **settings: float) -> Fit:
        asked = FitSettings(**{"epochs": 200, "hidden": 16, **settings})
        made = Fit(Examples(features, outputs), asked, asked.seed, {})
        made.run(1e9)
        settle(made.srae, features)
        return made

    return fit


@pytest.fixture
def fit_images() -> Callable[..., tuple[ConceptFit, list]]:
    """Runs a whole fit on the engine; returns it with its events."""

    def fit(module: nn.Module, images: Tensor, targets: Sequence[int] = (0,), **options: object) -> tuple:
        settings = FitSettings(**{"concepts": 2, "epochs": 40, "hidden": 8, "seeds": 1, **options.pop("settings", {})})
        question = FitQuestion(
            images=options.pop("source", GivenImages(images)), targets=targets, settings=settings, size=SIZE, **options
        )
        return run_steps(module, fit_concepts(question))

    return fit


def run_steps(module: nn.Module, steps: object) -> tuple:
    """Runs a generator on the engine; returns what it returns and what it tells."""
    evaluator = TorchEvaluator(module=module, device=torch.device("cpu"), output=Output.LOGITS)
    results, events, ends = [], [], []

    def collect():
        results.append((yield from steps))

    Engine(evaluator).run(Task(steps=collect(), on_event=events.append, on_end=ends.append))
    if ends[0] is not None:
        raise ends[0]
    return results[0], events


@pytest.fixture
def on_engine() -> Callable[..., tuple]:
    return run_steps
