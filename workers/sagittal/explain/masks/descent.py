"""Descent on masks: steps normalised to any scale of gradient, and random points of a path."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from sagittal.explain.problem import State
from sagittal.explain.steps import Steps

_MOMENTUM, _MEMORY = 0.9, 0.99
_EPSILON = 1e-12

AVERAGED = 0.5
"""Share of the iterations, the last ones, whose masks are averaged. Averaging cancels the noise of single steps."""

SETTLED_STEPS = 4
"""Consecutive steps of little change after which a descent has converged: terms alternate, and steps are noisy."""

ARMIJO, DECAY = 1e-4, 0.2
"""Line search: the share of the linear decrease that a step must reach, and the factor that shortens other steps."""

FIRST_TRIAL, MAX_TRIALS = 10.0, 6
"""Line search: the first step over `step_size`, and the maximum number of trials per iteration."""

COARSE = 28
"""Side, in cells, up to which the gradient of a mask is not blurred."""

SMOOTHED = 56
"""Steps are blurred by the mask's side over this number (half a cell at 28): single cells are adversarial."""


class Trial(Protocol):
    """Evaluates the objective at other masks, with the points and the noise of the current step."""

    def __call__(self, masks: Tensor, /) -> Steps[float]:
        """Yields requests; returns the objective as a float."""
        ...


class Optimiser(Protocol):
    """Moves masks against the gradient. Steps are in units of the mask, independent of the scale of the model.

    An optimiser that is constructed with the `state` of another one resumes from it.
    """

    @property
    def state(self) -> State:
        """Everything that the next step depends on, except its arguments."""
        ...

    def step(self, masks: Tensor, gradient: Tensor, objective: float, trial: Trial, share: float) -> Steps[Tensor]:
        """Returns the new masks, in [0, 1]; yields requests only to try several steps.

        Args:
            masks: Of shape (variables, size, size).
            gradient: Gradient of the objective, of the masks' shape.
            objective: Value at these masks.
            trial: Evaluates the objective at other masks.
            share: Completed share of the iterations, from 0 up to 1.
        """
        ...


class Adam:
    """Adam with smoothed steps that decay to zero. It requests no evaluations."""

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._step_size = step_size
        zero = torch.zeros(())
        self._mean, self._square = state.get("mean", zero), state.get("square", zero)
        self._steps = int(state.get("steps", 0))

    @property
    def state(self) -> State:
        """Both moments, and the number of steps."""
        return {"mean": self._mean, "square": self._square, "steps": torch.tensor(self._steps)}

    def step(self, masks: Tensor, gradient: Tensor, objective: float, trial: Trial, share: float) -> Steps[Tensor]:
        """Returns the new masks."""
        yield from ()
        self._steps += 1
        gradient = smoothed(gradient, _fineness(masks))
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * gradient
        self._square = _MEMORY * self._square + (1 - _MEMORY) * gradient**2
        mean = self._mean / (1 - _MOMENTUM**self._steps)
        root = (self._square / (1 - _MEMORY**self._steps)).sqrt()
        move = smoothed(mean / (root + _EPSILON), _smoothing(masks))
        return (masks - self._step_size * (1 - share) * move).clamp(0, 1)


class Nesterov:
    """Nesterov's accelerated gradient (Khorram et al., BMVC 2023), with the gradient scaled to its largest value.

    The published step of 1000 on the unscaled gradient diverges on models with larger gradients.
    """

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._step_size = step_size
        self._previous = state.get("previous")
        self._steps = int(state.get("steps", 0))

    @property
    def state(self) -> State:
        """The masks before momentum, and the number of steps."""
        previous = {} if self._previous is None else {"previous": self._previous}
        return {**previous, "steps": torch.tensor(self._steps)}

    def step(self, masks: Tensor, gradient: Tensor, objective: float, trial: Trial, share: float) -> Steps[Tensor]:
        """Returns the new masks."""
        yield from ()
        largest = gradient.abs().amax() + _EPSILON
        moved = (masks - self._step_size * (1 - share) * gradient / largest).clamp(0, 1)
        previous = moved if self._previous is None else self._previous
        momentum = self._steps / (self._steps + 3)
        self._previous, self._steps = moved, self._steps + 1
        return (moved + momentum * (moved - previous)).clamp(0, 1)


class LineSearch:
    """Armijo backtracking along the gradient; a search that finds no decrease leaves the masks unchanged."""

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._first = step_size * FIRST_TRIAL

    @property
    def state(self) -> State:
        """Empty: each step is an independent search."""
        return {}

    def step(self, masks: Tensor, gradient: Tensor, objective: float, trial: Trial, share: float) -> Steps[Tensor]:
        """Yields trials; returns the new masks."""
        scale = gradient.abs().amax() + _EPSILON
        slope = float((gradient**2).sum() / scale)
        length = self._first
        for _ in range(MAX_TRIALS):
            moved = (masks - length * gradient / scale).clamp(0, 1)
            value = yield from trial(moved)
            if value <= objective - ARMIJO * length * slope:
                return moved
            length *= DECAY
        return masks


OPTIMISERS: Mapping[str, Callable[[float, State], Optimiser]] = {
    "adam": Adam,
    "line-search": LineSearch,
    "nesterov": Nesterov,
}
"""Constructors of optimisers by name; the argument is the size of the first step."""


class Average:
    """The mean of the masks over the last iterations; until those, the newest masks."""

    def __init__(self, masks: Tensor, state: State = MappingProxyType({}), *, share: float = AVERAGED) -> None:
        """Starts with the first masks, or resumes from the state of another average.

        Args:
            masks: The first masks.
            state: State of another average.
            share: Share of the iterations, the last ones, whose masks are averaged; 0 keeps the newest masks.
        """
        self._share = share
        self._sum, self._count = state.get("sum", masks), int(state.get("count", 0))
        self._changes = state.get("changes", torch.full((SETTLED_STEPS,), torch.inf))

        self.untouched = not state
        """Whether no masks were added yet."""

    @property
    def state(self) -> State:
        """The sum, its number of masks, and the changes in the last steps."""
        return {"sum": self._sum, "count": torch.tensor(self._count), "changes": self._changes}

    @property
    def masks(self) -> Tensor:
        """The mean so far."""
        return self._sum / max(self._count, 1)

    def add(self, masks: Tensor, share: float) -> None:
        """Adds the masks of an iteration; `share` is the completed share of the iterations."""
        self.untouched = False
        before = self.masks
        counts = share >= 1 - self._share and self._share > 0
        self._sum = self._sum + masks if counts and self._count else masks
        self._count += counts
        change = (self.masks - before).abs().mean().reshape(1)
        self._changes = torch.cat([self._changes[1:], change.to(self._changes)])

    def settled(self, tolerance: float) -> bool:
        """Returns whether each of the last steps changed the mean by less than a tolerance, averaged over cells."""
        return bool((self._changes < tolerance).all())


def _smoothing(masks: Tensor) -> float:
    """Returns the width of a step's blur, in cells."""
    return masks.shape[-1] / SMOOTHED


def _fineness(masks: Tensor) -> float:
    """Returns the width of a gradient's blur, in cells; 0 for masks of up to `COARSE` cells a side.

    A cell of a finer mask has a weaker and noisier gradient. Steps that follow only its signs form no mask.
    """
    return max(0.0, masks.shape[-1] / COARSE - 1) / 2


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Blurs (n, h, w) with a Gaussian of `sigma` cells; 0 leaves the values unchanged."""
    if sigma <= 0:
        return values
    rows, columns = (_blurring(cells, sigma).to(values) for cells in values.shape[-2:])
    return rows @ values @ columns.mT


@functools.lru_cache(maxsize=64)
def _blurring(cells: int, sigma: float) -> Tensor:
    """Returns the contribution of each cell of a line to each blurred cell, (cells, cells); ends are repeated."""
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    sources = (torch.arange(cells).unsqueeze(1) + offsets.long()).clamp_(0, cells - 1)
    return torch.zeros(cells, cells).scatter_add_(1, sources, (kernel / kernel.sum()).expand(cells, -1))


def stratified(rows: int, points: int, generator: torch.Generator) -> Tensor:
    """Returns random points in [0, 1) of shape (rows, points), one in each of `points` equal strata."""
    offsets = torch.arange(points, dtype=torch.float32) + torch.rand(rows, points, generator=generator)
    return offsets / max(points, 1)
