"""Fits an SRAE to features and outputs: all images in each step, with Adam, in slices between which other jobs run.

The step size decays to zero, and the last network is the result: held-out images influence no choice.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.concepts.srae import SRAE, TINY, Perceptron, Terms, loss_terms
from sagittal.explain.events import Checkpoint, Progress
from sagittal.explain.parameters import check, parameter
from sagittal.explain.problem import derive_seed, prefixed
from sagittal.explain.steps import Steps

RIDGE = 1e-3
"""Weight of the squared coefficients, relative to the mean squared length of the features."""

LEFT = 0.05
"""Share of the prediction's variance below which it is not divided further."""

TINY_SPREAD = 1e-12
"""Keeps divisions by the spread of a constant direction finite."""


def initialise(srae: SRAE, features: Tensor, outputs: Tensor, generator: torch.Generator) -> None:
    """Sets all weights, and the units, from features (images, features) and outputs (images, outputs).

    From random weights, descent finds one of many networks that agree with the model on the given images, but not on
    others. The best linear prediction of the outputs generalises. The x-features therefore start as that prediction and
    the strongest other directions of the features (principal components), in a random rotation. Descent adds the
    remaining terms of equation (1), in the linear and the nonlinear part.
    """
    with torch.no_grad():
        for perceptron in (srae.encoder, srae.decoder):
            _draw(perceptron, generator)
    scaled, wanted = _standardised(srae, features, outputs)
    directions = _directions(scaled, wanted - wanted.mean(0), srae.x_features)
    rotation = _rotation(srae.x_features, generator).to(directions)
    _read_linearly(srae, directions @ rotation, scaled, wanted)


def fit_linear_part(srae: SRAE, directions: Tensor, features: Tensor, outputs: Tensor) -> None:
    """Sets the units and the linear part, so that the x-features are directions (features, x-features)."""
    _read_linearly(srae, directions, *_standardised(srae, features, outputs))


def _standardised(srae: SRAE, features: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sets the units; returns features and outputs in them, in double precision."""
    with torch.no_grad():
        srae.feature_mean.copy_(features.mean(0))
        srae.feature_scale.copy_((features - srae.feature_mean).square().mean().sqrt())
        srae.output_scale.copy_((outputs - outputs.mean(0)).square().mean().sqrt())
        return ((features - srae.feature_mean) / srae.feature_scale).double(), (outputs / srae.output_scale).double()


def _read_linearly(srae: SRAE, directions: Tensor, scaled: Tensor, wanted: Tensor) -> None:
    """Sets the linear part: the least-squares predictions of the outputs and of the features from the directions."""
    with torch.no_grad():
        values = scaled @ directions
        readout = torch.linalg.lstsq(values, wanted - wanted.mean(0)).solution
        offset = torch.linalg.pinv(readout.T) @ wanted.mean(0)
        rebuilt = torch.linalg.lstsq(values, scaled).solution
        srae.encoder.direct.weight.copy_(directions.T)
        srae.encoder.direct.bias.copy_(offset)
        srae.decoder.direct.weight.copy_(rebuilt.T)
        srae.decoder.direct.bias.copy_(-offset @ rebuilt)
        srae.readout.copy_(readout)


def _draw(perceptron: Perceptron, generator: torch.Generator) -> None:
    """Draws the hidden units; their output weights start at zero, so that the network starts as its linear map."""
    hidden = perceptron.hidden
    bound = hidden.in_features**-0.5
    for weight in (hidden.weight, hidden.bias):
        weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
    nn.init.zeros_(perceptron.bent.weight)


def _directions(features: Tensor, outputs: Tensor, count: int) -> Tensor:
    """Returns directions (features, count) of unit spread that together predict as well as the best prediction."""
    coefficients = _ridge(features, outputs)
    _, spread, mixture = torch.linalg.svd(features @ coefficients, full_matrices=False)
    kept = min(int((spread > spread.max() * 1e-6).sum()), count)
    predicting = coefficients @ mixture.T[:, :kept]
    whole = (features @ predicting).square().sum()
    directions = predicting[:, :0]
    for _ in range(count - kept):
        left = features @ _beyond(predicting, directions, features)
        if left.square().sum() > LEFT * whole:
            varying = torch.linalg.svd(features.T @ left, full_matrices=False)[0][:, :1]
        else:
            used = features @ torch.cat([predicting, directions], 1)
            rest = features - used @ torch.linalg.lstsq(used, features).solution
            varying = torch.linalg.svd(rest, full_matrices=False)[2][:1].T
        directions = torch.cat([directions, _beyond(varying, directions, features)], 1)
    directions = torch.cat([_beyond(predicting, directions, features), directions], 1)
    return directions / (features @ directions).square().mean(0).sqrt().clamp(min=TINY_SPREAD)


def _beyond(directions: Tensor, others: Tensor, features: Tensor) -> Tensor:
    """Returns the component of directions that is orthogonal to other directions of the features."""
    if not others.shape[1]:
        return directions
    along: Tensor = torch.linalg.lstsq(features @ others, features @ directions).solution
    return directions - others @ along


def _ridge(features: Tensor, outputs: Tensor) -> Tensor:
    """Returns the coefficients (features, outputs) of the ridge regression, solved on the smaller side."""
    images, width = features.shape
    weight = RIDGE * features.square().sum(1).mean()
    if images < width:
        gram = features @ features.T + weight * torch.eye(images).to(features)
        coefficients: Tensor = features.T @ torch.linalg.solve(gram, outputs)
        return coefficients
    gram = features.T @ features + weight * torch.eye(width).to(features)
    solved: Tensor = torch.linalg.solve(gram, features.T @ outputs)
    return solved


def _rotation(count: int, generator: torch.Generator) -> Tensor:
    """Returns a random rotation (count, count)."""
    drawn = torch.randn(count, count, generator=generator, dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(drawn).Q
    return rotation


ANGLES = 90
"""Number of angles tried for each pair of x-features, from 0 to a quarter turn."""

SWEEPS = 8
"""Maximum number of rounds over all pairs."""

NORMAL = 0.374567
"""Mean of log cosh(u) for a standard normal u."""

PEAK_WEIGHT = 33.67
"""Weight of the squared difference from it, relative to that of the squared skewness."""


def settle(srae: SRAE, features: Tensor) -> None:
    """Rotates, flips, scales and orders the x-features of a fitted network in place; predictions do not change.

    Faithfulness and reconstruction depend on linear maps of the x-features, and orthogonal x-features of equal length
    remain orthogonal under rotation. The loss thus leaves a rotation free, which determines how concepts are mixed. The
    rotation is chosen to make the x-features as independent as possible, by independent component analysis: mixtures of
    independent causes are closer to a normal distribution than the causes. Then they are arranged.
    """
    with torch.no_grad():
        _equalise(srae, features)
        _transform(srae, independent_rotation(srae.encode(features)).T)
        _order(srae, features)


def arrange(srae: SRAE, features: Tensor) -> None:
    """Gives the x-features equal length, and fixes signs and order, in place; predictions do not change.

    A larger x-feature increases the class, and the x-feature with the largest effect on the prediction comes first.
    """
    with torch.no_grad():
        _equalise(srae, features)
        _order(srae, features)


def _equalise(srae: SRAE, features: Tensor) -> None:
    lengths = srae.encode(features).square().mean(0).sqrt().clamp(min=TINY)
    _transform(srae, torch.diag(1 / lengths))


def _order(srae: SRAE, features: Tensor) -> None:
    strongest = srae.readout.abs().argmax(1)
    signs = srae.readout.gather(1, strongest.unsqueeze(1)).squeeze(1).sign()
    signs[signs == 0] = 1
    effect = srae.encode(features).std(0) * srae.readout.norm(dim=1)
    _transform(srae, torch.diag(signs)[effect.argsort(descending=True)])


def independent_rotation(values: Tensor) -> Tensor:
    """Returns the rotation (n, n) after which the columns of values (images, n) are least normally distributed."""
    rotation = torch.eye(values.shape[1]).to(values)
    turned = values.clone()
    for _ in range(SWEEPS):
        largest = 0.0
        for first in range(values.shape[1]):
            for second in range(first + 1, values.shape[1]):
                angle = _best_angle(turned[:, first], turned[:, second])
                turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                pair = [first, second]
                turned[:, pair] = turned[:, pair] @ turn.to(values)
                rotation[:, pair] = rotation[:, pair] @ turn.to(values)
                largest = max(largest, min(angle, math.pi / 2 - angle))
        if largest < math.pi / 2 / ANGLES:
            break
    return rotation


def _best_angle(first: Tensor, second: Tensor) -> float:
    """Returns the angle in [0, pi / 2) that makes a pair of columns least normally distributed."""
    angles = torch.arange(ANGLES).to(first) * (math.pi / 2 / ANGLES)
    cosine, sine = torch.cos(angles).unsqueeze(1), torch.sin(angles).unsqueeze(1)
    distance = _distance(cosine * first + sine * second) + _distance(cosine * second - sine * first)
    return float(angles[distance.argmax()])


def _distance(lines: Tensor) -> Tensor:
    """Returns the distance of each line (lines, images) from a normal distribution: an approximate negentropy."""
    centred = lines - lines.mean(1, keepdim=True)
    standard = centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)
    skew = standard.pow(3).mean(1)
    # log cosh, in a form that cannot overflow
    peaked = (standard.abs() + torch.log1p(torch.exp(-2 * standard.abs())) - math.log(2)).mean(1) - NORMAL
    return skew.square() / 12 + PEAK_WEIGHT * peaked.square()


def _transform(srae: SRAE, matrix: Tensor) -> None:
    """Replaces the x-features x by `matrix @ x`, and applies the inverse after them."""
    inverse = torch.linalg.inv(matrix)
    for weight in (srae.encoder.direct.weight, srae.encoder.direct.bias, srae.encoder.bent.weight):
        weight.copy_(matrix @ weight)
    for weight in (srae.decoder.direct.weight, srae.decoder.hidden.weight):
        weight.copy_(weight @ inverse)
    srae.readout.copy_(inverse.T @ srae.readout)


METHODS = ("srae", "components")
"""How x-features are found: by the loss of the paper, or as independent components of positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Settings of a fit; values out of bounds raise InvalidParameter."""

    concepts: int = parameter(5, "Number of x-features", minimum=1, maximum=32)
    beta: float = parameter(1.0, "Weight of the reconstruction term", minimum=0, maximum=1e6)
    q: float = parameter(1.0, "Sharpness of the log-sparse reconstruction", minimum=0, maximum=1e6)
    eta: float = parameter(1.0, "Weight of the pull-away term", minimum=0, maximum=1e6)
    epochs: int = parameter(300, "Passes over the images", minimum=1, maximum=100_000)
    hidden: int = parameter(64, "Width of the hidden layers of encoder and decoder", minimum=1, maximum=4096)
    views: int = parameter(0, "Random crops of each image that are also fitted", minimum=0, maximum=64)
    seeds: int = parameter(2, "Number of fits from different seeds; the first is kept", minimum=1, maximum=8)
    method: str = parameter("srae", "The published loss, or independent components", choices=METHODS)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)


STEP = 0.002
"""Step size of Adam at the start."""

SLICE = 0.1
"""Maximum time of a slice of the fit, in seconds; a slice runs at least one epoch."""

SLICE_ROWS = 4
"""Cost of a slice in masked images, for scheduling: they take about as long on a CPU."""

_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Features and outputs of images."""

    features: Tensor
    """Float32 of shape (images, features)."""
    outputs: Tensor
    """Float32 of shape (images, targets): the model's outputs, before softmax if it has one."""
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Float32 of shape (positions, features): some positions of the images; none if the fit does not read them."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features)

    def rows(self, index: Tensor) -> "Examples":
        """Returns some of the images."""
        return Examples(self.features[index], self.outputs[index])


def objective(terms: Terms, settings: FitSettings) -> Tensor:
    """Returns the weighted loss, equation (1)."""
    return terms.faithfulness + settings.beta * terms.reconstruction + settings.eta * terms.pull_away


class Training(ABC):
    """A fit that can be stopped and resumed after any epoch."""

    def __init__(self, data: Examples, settings: FitSettings, restored: Mapping[str, Tensor]) -> None:
        """Starts, or resumes from the state of an earlier attempt."""
        self._data = data
        self._settings = settings
        self.epoch = int(restored.get("epoch", 0))
        """Number of epochs that are done."""
        self.terms: Terms | None = None
        """Terms of the loss after the last epoch, if any ran here."""

    @property
    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """Everything that later epochs depend on."""

    @property
    @abstractmethod
    def result(self) -> Mapping[str, Tensor]:
        """The remaining state when the fit is done."""

    @property
    def done(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self._settings.epochs

    def run(self, seconds: float) -> None:
        """Runs epochs for this time, at least one."""
        until = time.monotonic() + seconds
        while not self.done:
            self._step()
            if time.monotonic() >= until:
                return

    @abstractmethod
    def finish(self) -> SRAE:
        """Returns the fitted network when the fit is done."""

    @abstractmethod
    def _step(self) -> None:
        """Runs an epoch."""


class Fit(Training):
    """A fit by the published loss."""

    def __init__(self, data: Examples, settings: FitSettings, seed: int, restored: Mapping[str, Tensor]) -> None:
        """Starts, or resumes from the state of an earlier attempt."""
        super().__init__(data, settings, restored)
        features, outputs = data.features.shape[1], data.outputs.shape[1]
        self.srae = SRAE(features, settings.concepts, outputs, settings.hidden).to(data.features.dtype)
        self.srae.to(data.features.device)
        initialise(self.srae, data.features, data.outputs, torch.Generator().manual_seed(derive_seed(seed, "srae")))
        start = parameters_to_vector(self.srae.parameters()).detach()
        self._weights = restored.get("weights", start)
        self._mean = restored.get("mean", torch.zeros_like(start))
        self._square = restored.get("square", torch.zeros_like(start))
        # a copy, because parameters become views of their values, and are settled in place
        vector_to_parameters(self._weights.clone(), self.srae.parameters())

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Everything that later epochs depend on."""
        adam = {"weights": self._weights, "mean": self._mean, "square": self._square}
        return {"epoch": torch.tensor(self.epoch), **adam}

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The remaining state when the fit is done."""
        return {"epoch": torch.tensor(self.epoch), "weights": self._weights}

    def finish(self) -> SRAE:
        """Returns the fitted network, settled."""
        settle(self.srae, self._data.features)
        return self.srae

    def _step(self) -> None:
        parameters = list(self.srae.parameters())
        with torch.enable_grad():
            terms = loss_terms(self.srae, self._data.features, self._data.outputs, q=self._settings.q)
            gradients = torch.autograd.grad(objective(terms, self._settings), parameters)
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
    """A range of the whole job's progress."""

    begin: float
    end: float

    def at(self, fraction: float) -> float:
        """Returns the whole's progress at a fraction of the part's."""
        return self.begin + fraction * (self.end - self.begin)


def train(
    fit: Training,
    settings: FitSettings,
    subject: Subject,
    *,
    states: dict[str, Tensor],
    share: Share = Share(0, 1),
    part: str = "fit",
) -> Steps[SRAE]:
    """Yields slices, progress with the three terms, and checkpoints; returns the fitted network.

    Args:
        fit: The fit, resumed from its state in `states` if there is one.
        settings: Settings of the fit.
        subject: Any subject, for the requests.
        states: States of this job's fits by name: this fit stores its state here.
        share: This fit's range of the job's progress.
        part: Name of this fit's state in checkpoints.
    """

    def slice_of(_view: ModelView) -> None:
        fit.run(SLICE)

    while not fit.done:
        yield Inspect(subject=subject, call=slice_of, rows=SLICE_ROWS)
        loss = float(objective(fit.terms, settings)) if fit.terms else math.nan
        yield Progress(share.at(fit.epoch / settings.epochs), loss, phase=part, terms=_told(fit))
        yield Checkpoint(states | prefixed(part, fit.state))
    states.update(prefixed(part, fit.result))
    return fit.finish().eval().requires_grad_(False)


def _told(fit: Training) -> Mapping[str, float]:
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
