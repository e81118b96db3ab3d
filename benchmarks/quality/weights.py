"""The model-randomisation check of every method: how far a heatmap agrees with that of a model with random weights."""

import dataclasses
from pathlib import Path
from typing import Any

from quality import cache
from quality.sanity import randomisation_check
from subject import Picture
from torch import Tensor, nn

from sagittal.engine import Engine, Task
from sagittal.explain import Explainer, Metrics, Question, explanation_steps
from sagittal.explain.events import SaliencyMask
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black
from sagittal.models.sources import EVERYTHING, load_source

STATES = 3
"""States of the cascade: about a third of the layers random, two thirds, all."""


def place(heatmaps: Path) -> Path:
    """Returns the folder of a method's checks, beside that of its heatmaps."""
    return cache.ROOT / f"weights-{heatmaps.name}"


def checked(loaded: LoadedModel, picture: Picture, explainer: Explainer, target: int) -> dict[str, Any]:
    """Returns the rank correlations with the trained model's heatmap, from few random layers to all."""

    def heatmap(module: nn.Module) -> Tensor:
        return _heatmap(loaded, module, Question(image=picture.image, target=target), explainer)

    states = list(randomisation_check(lambda: _module(loaded), heatmap, layers=STATES))
    return {f"state{index}": state.correlation for index, state in enumerate(states)}


def _module(loaded: LoadedModel) -> nn.Module:
    return load_source(loaded.entry.source, EVERYTHING).module.eval().requires_grad_(False).to(loaded.device)


def _heatmap(loaded: LoadedModel, module: nn.Module, question: Question, explainer: Explainer) -> Tensor:
    """Returns the heatmap of a module as it is, none of its layers folded away."""
    evaluator = dataclasses.replace(loaded.evaluator, module=module, inspected=module, channels_last=False)
    question = dataclasses.replace(question, black=black(loaded.entry.preprocessing))
    finals: list[Tensor] = []
    ends: list[BaseException | None] = []

    def note(event: object) -> None:
        if isinstance(event, SaliencyMask) and event.final:
            finals.append(event.saliency)

    task = Task(steps=explanation_steps(question, explainer, Metrics(curves=False)), on_event=note, on_end=ends.append)
    Engine(evaluator, batch_size=loaded.found.batch_size, unit=evaluator.unit).run(task)
    if ends[0] is not None:
        raise ends[0]
    return finals[0]
