"""Fits an SRAE to features and outputs: all images in each step, with Adam, in slices between which others get a turn.

The steps decay to zero, and the network at the end is the result: no choice is made by the images that are held out.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sagittal.explain.checkpoints import prefixed, within
from sagittal.explain.concepts.beginning import initialise
from sagittal.explain.concepts.rotation import settle
from sagittal.explain.concepts.settings import FitSettings
from sagittal.explain.concepts.srae import SRAE, Terms, loss_terms
from sagittal.explain.events import Checkpoint, Progress
from sagittal.explain.problem import derive_seed
from sagittal.explain.requests import Inspect, ModelView, Steps, Subject

STEP = 0.002
"""Size of Adam's first steps."""

SLICE = 0.1
"""Time that a slice of the fit takes at most, one epoch at least, in seconds."""

SLICE_ROWS = 4
"""Masked images that a slice counts as, when turns are given: about what takes as long on a CPU."""

_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images as the model's layer sees them."""

    features: Tensor
    """Float32 of shape (images, features)."""
    outputs: Tensor
    """Float32 of shape (images, targets): what the model says of each, before softmax where it has one."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features)

    def rows(self, index: Tensor) -> "Examples":
        """Returns some of the images."""
        return Examples(self.features[index], self.outputs[index])


class Fit:
    """A fit that can be stopped and taken up again after any epoch."""

    def __init__(self, data: Examples, settings: FitSettings, seed: int, restored: Mapping[str, Tensor]) -> None:
        """Begins, or goes on from the state of an earlier attempt."""
        self._data = data
        self._settings = settings
        features, outputs = data.features.shape[1], data.outputs.shape[1]
        self.srae = SRAE(features, settings.concepts, outputs, settings.hidden).to(data.features.dtype)
        self.srae.to(data.features.device)
        initialise(self.srae, data.features, data.outputs, torch.Generator().manual_seed(derive_seed(seed, "srae")))
        start = parameters_to_vector(self.srae.parameters()).detach()
        self.epoch = int(restored.get("epoch", 0))
        self._weights = restored.get("weights", start)
        self._mean = restored.get("mean", torch.zeros_like(start))
        self._square = restored.get("square", torch.zeros_like(start))
        # a copy, since parameters become views of what they are set to, and are settled in place
        vector_to_parameters(self._weights.clone(), self.srae.parameters())
        self.terms: Terms | None = None
        """Of the last epoch."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """All that the epochs to come depend on."""
        adam = {"weights": self._weights, "mean": self._mean, "square": self._square}
        return {"epoch": torch.tensor(self.epoch), **adam}

    @property
    def result(self) -> Mapping[str, Tensor]:
        """What is left of the state when the fit is done."""
        return {"epoch": torch.tensor(self.epoch), "weights": self._weights}

    @property
    def done(self) -> bool:
        """Whether all epochs are over."""
        return self.epoch >= self._settings.epochs

    def run(self, seconds: float) -> None:
        """Runs epochs for so long, one at least."""
        until = time.monotonic() + seconds
        while not self.done:
            self._step()
            if time.monotonic() >= until:
                return

    def objective(self) -> float:
        """Returns the loss of the last epoch, its terms weighted."""
        return float(self._loss(self.terms)) if self.terms else math.nan

    def _loss(self, terms: Terms) -> Tensor:
        weights = self._settings
        return terms.faithfulness + weights.beta * terms.reconstruction + weights.eta * terms.pull_away

    def _step(self) -> None:
        parameters = list(self.srae.parameters())
        with torch.enable_grad():
            terms = loss_terms(self.srae, self._data.features, self._data.outputs, q=self._settings.q)
            gradients = torch.autograd.grad(self._loss(terms), parameters)
        self.terms = Terms(terms.faithfulness.detach(), terms.reconstruction.detach(), terms.pull_away.detach())
        gradient = parameters_to_vector(gradients)
        step = STEP * 0.5 * (1 + math.cos(math.pi * self.epoch / self._settings.epochs))
        self.epoch += 1
        self._mean = _MEAN_DECAY * self._mean + (1 - _MEAN_DECAY) * gradient
        self._square = _SQUARE_DECAY * self._square + (1 - _SQUARE_DECAY) * gradient.square()
        mean = self._mean / (1 - _MEAN_DECAY**self.epoch)
        square = self._square / (1 - _SQUARE_DECAY**self.epoch)
        self._weights = self._weights - step * mean / (square.sqrt() + _EPSILON)
        with torch.no_grad():
            vector_to_parameters(self._weights.clone(), parameters)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the whole job's progress that some steps are."""

    begin: float
    end: float

    def at(self, fraction: float) -> float:
        """Returns the whole's progress at a fraction of the part's."""
        return self.begin + fraction * (self.end - self.begin)


def train(
    data: Examples,
    settings: FitSettings,
    seed: int,
    subject: Subject,
    *,
    states: dict[str, Tensor],
    share: Share = Share(0, 1),
    part: str = "fit",
) -> Steps:
    """Yields slices, progress with the three terms, and checkpoints; returns the fitted network, settled.

    Args:
        data: What to fit.
        settings: How.
        seed: Of the first weights.
        subject: Any, for the requests.
        states: State of the fits of this job, each under its name: where this one begins, and where it leaves its own.
        share: The part of the whole's progress that this fit is.
        part: Name of this fit's state in checkpoints.
    """
    fit = Fit(data, settings, seed, within(states, part))

    def slice_of(_view: ModelView) -> None:
        fit.run(SLICE)

    while not fit.done:
        yield Inspect(subject=subject, call=slice_of, rows=SLICE_ROWS)
        yield Progress(share.at(fit.epoch / settings.epochs), fit.objective(), phase=part, terms=_told(fit))
        yield Checkpoint(states | prefixed(part, fit.state))
    states.update(prefixed(part, fit.result))
    settle(fit.srae, data.features)
    return fit.srae.eval().requires_grad_(False)


def _told(fit: Fit) -> Mapping[str, float]:
    terms = fit.terms
    if terms is None:
        return {}
    named: Mapping[str, float | Tensor] = {
        "epoch": fit.epoch,
        "faithfulness": terms.faithfulness,
        "reconstruction": terms.reconstruction,
        "pull_away": terms.pull_away,
    }
    return {name: float(value) for name, value in named.items()}
