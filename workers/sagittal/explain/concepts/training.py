"""Fits an SRAE to features and outputs: all images in each step, with Adam, in slices between which others get a turn.

The steps decay to zero, and the network at the end is the result: no choice is made by the images that are held out.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.concepts.srae import SRAE, TINY, Perceptron, Terms, loss_terms
from sagittal.explain.events import Checkpoint, Progress
from sagittal.explain.parameters import check, parameter
from sagittal.explain.problem import derive_seed, prefixed, within
from sagittal.explain.steps import Steps

# Where a fit begins: at a linear explanation network that is already faithful.
#
# From random weights, descent finds one of the many networks that agree on the images at hand, and not the one that
# agrees on others. The best linear prediction of the outputs does, as far as there is one: so the x-features begin as
# that prediction and the strongest directions of the features beside it (principal components), in a rotation that the
# seed draws. What descent adds is the rest of equation (1), in what is linear and what is not.


RIDGE = 1e-3
"""Weight of the squared coefficients, relative to the mean squared length of the features."""

LEFT = 0.05
"""Share of the prediction's variance below which it is not divided any further."""

TINY_SPREAD = 1e-12
"""Keeps divisions by the spread of a constant direction finite."""


def initialise(srae: SRAE, features: Tensor, outputs: Tensor, generator: torch.Generator) -> None:
    """Sets all weights, and the units, from features (images, features) and outputs (images, outputs)."""
    with torch.no_grad():
        srae.feature_mean.copy_(features.mean(0))
        srae.feature_scale.copy_((features - srae.feature_mean).square().mean().sqrt())
        srae.output_scale.copy_((outputs - outputs.mean(0)).square().mean().sqrt())
        for perceptron in (srae.encoder, srae.decoder):
            _draw(perceptron, generator)
        scaled = ((features - srae.feature_mean) / srae.feature_scale).double()
        wanted = (outputs / srae.output_scale).double()
        directions = _directions(scaled, wanted - wanted.mean(0), srae.x_features)
        rotation = _rotation(srae.x_features, generator).to(directions)
        directions = directions @ rotation
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
    """Draws the hidden units; they begin without a say, so that the linear map is all there is."""
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
    """Returns what of directions the features do not have along other directions."""
    if not others.shape[1]:
        return directions
    along: Tensor = torch.linalg.lstsq(features @ others, features @ directions).solution
    return directions - others @ along


def _ridge(features: Tensor, outputs: Tensor) -> Tensor:
    """Returns the coefficients (features, outputs) of the ridge regression, by whichever side is smaller."""
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


# Which of the solutions that equation (1) cannot tell apart is shown.
#
# Faithfulness and reconstruction see x-features through linear maps, and orthogonal x-features of equal length stay so
# when they are turned: the loss leaves a rotation free, and with it which mixtures of concepts are shown as one. The
# rotation that is chosen makes the x-features as independent as they can be, by the principle of independent component
# analysis: mixtures of independent causes are closer to normally distributed than the causes are. Then signs and order
# are settled: more of an x-feature means more of the class, and the one that moves the prediction most comes first.


ANGLES = 90
"""Angles tried for each pair of x-features, from 0 to a quarter turn."""

SWEEPS = 8
"""Most rounds over all pairs."""

NORMAL = 0.374567
"""Mean of log cosh(u) for a standard normal u."""

PEAK_WEIGHT = 33.67
"""Weight of the squared difference to it, beside that of the squared skewness."""


def settle(srae: SRAE, features: Tensor) -> None:
    """Turns, flips, scales and orders the x-features of a fitted network in place; its predictions stay the same."""
    with torch.no_grad():
        values = srae.encode(features)
        lengths = values.square().mean(0).sqrt().clamp(min=TINY)
        _transform(srae, torch.diag(1 / lengths))
        values = srae.encode(features)
        _transform(srae, independent_rotation(values).T)
        values = srae.encode(features)
        strongest = srae.readout.abs().argmax(1)
        signs = srae.readout.gather(1, strongest.unsqueeze(1)).squeeze(1).sign()
        signs[signs == 0] = 1
        effect = values.std(0) * srae.readout.norm(dim=1)
        order = effect.argsort(descending=True)
        _transform(srae, torch.diag(signs)[order])


def independent_rotation(values: Tensor) -> Tensor:
    """Returns the rotation (n, n) after which the columns of values (images, n) are the least normally distributed."""
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
    """Returns the angle in [0, pi / 2) that makes a pair of columns the least normal together."""
    angles = torch.arange(ANGLES).to(first) * (math.pi / 2 / ANGLES)
    cosine, sine = torch.cos(angles).unsqueeze(1), torch.sin(angles).unsqueeze(1)
    distance = _distance(cosine * first + sine * second) + _distance(cosine * second - sine * first)
    return float(angles[distance.argmax()])


def _distance(lines: Tensor) -> Tensor:
    """Returns how far each line (lines, images) is from a normal distribution: an approximation of negentropy."""
    centred = lines - lines.mean(1, keepdim=True)
    standard = centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)
    skew = standard.pow(3).mean(1)
    # log cosh, written so that it cannot overflow
    peaked = (standard.abs() + torch.log1p(torch.exp(-2 * standard.abs())) - math.log(2)).mean(1) - NORMAL
    return skew.square() / 12 + PEAK_WEIGHT * peaked.square()


def _transform(srae: SRAE, matrix: Tensor) -> None:
    """Replaces the x-features x by `matrix @ x`, and undoes it behind them."""
    inverse = torch.linalg.inv(matrix)
    for weight in (srae.encoder.direct.weight, srae.encoder.direct.bias, srae.encoder.bent.weight):
        weight.copy_(matrix @ weight)
    for weight in (srae.decoder.direct.weight, srae.decoder.hidden.weight):
        weight.copy_(weight @ inverse)
    srae.readout.copy_(inverse.T @ srae.readout)


# What is asked of a fit: the weights of equation (1), its size, its seed.


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Settings of a fit; out of bounds, they raise InvalidParameter."""

    concepts: int = parameter(5, "Number of x-features", minimum=1, maximum=32)
    beta: float = parameter(1.0, "Weight of the reconstruction term", minimum=0, maximum=1e6)
    q: float = parameter(1.0, "Sharpness of the log-sparse reconstruction", minimum=0, maximum=1e6)
    eta: float = parameter(1.0, "Weight of the pull-away term", minimum=0, maximum=1e6)
    epochs: int = parameter(300, "Passes over the images", minimum=1, maximum=100_000)
    hidden: int = parameter(64, "Width of the hidden layers of encoder and decoder", minimum=1, maximum=4096)
    views: int = parameter(0, "Random crops of each image that are fitted too", minimum=0, maximum=64)
    seeds: int = parameter(2, "Fits from different seeds, of which the first is kept", minimum=1, maximum=8)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)


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
) -> Steps[SRAE]:
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
