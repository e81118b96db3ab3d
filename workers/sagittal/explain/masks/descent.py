"""Descent on masks: normalised steps that fit any scale of gradient, and random points of a path."""

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
"""Share of the iterations, the last ones, whose masks are averaged: it cancels the noise of single steps."""

SETTLED_STEPS = 4
"""Steps that are to change little before a descent counts as settled: terms are taken in turn, and steps are noisy."""

ARMIJO, DECAY = 1e-4, 0.2
"""Of the line search: share of the linear decrease that a step must reach, and what shortens a step that does not."""

FIRST_TRIAL, MAX_TRIALS = 10.0, 6
"""Of the line search: its first step over `step_size`, and the most trials of one iteration."""

COARSE = 28
"""Side of a mask whose gradient is taken as it is."""

SMOOTHED = 56
"""Steps are blurred by one part in so many of the mask's side (half a cell of 28): single cells are adversarial."""


class Trial(Protocol):
    """Evaluates the objective at other masks, with the points and the noise of the current step."""

    def __call__(self, masks: Tensor, /) -> Steps[float]:
        """Yields requests; returns the objective as a float."""
        ...


class Optimiser(Protocol):
    """How masks move against the gradient. Steps are in units of the mask, so that no model's scale matters.

    One that is made with the `state` of another goes on where that one stopped.
    """

    @property
    def state(self) -> State:
        """What the next step depends on beyond its arguments."""
        ...

    def step(self, masks: Tensor, gradient: Tensor, objective: float, trial: Trial, share: float) -> Steps[Tensor]:
        """Returns the new masks, in [0, 1]; yields requests only where it must try several.

        Args:
            masks: Of shape (variables, size, size).
            gradient: Of the objective, of the masks' shape.
            objective: At these masks.
            trial: Evaluates the objective elsewhere.
            share: Of the iterations that are done, from 0 up to 1.
        """
        ...


class Adam:
    """Adam with smoothed steps that decay to zero. Asks for no evaluations."""

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._step_size = step_size
        zero = torch.zeros(())
        self._mean, self._square = state.get("mean", zero), state.get("square", zero)
        self._steps = int(state.get("steps", 0))

    @property
    def state(self) -> State:
        """Both moments, and the steps taken."""
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
    """Nesterov's accelerated gradient (Khorram et al., BMVC 2023), the gradient scaled to its largest value.

    The published step of 1000 on the raw gradient diverges on models whose gradients are larger.
    """

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._step_size = step_size
        self._previous = state.get("previous")
        self._steps = int(state.get("steps", 0))

    @property
    def state(self) -> State:
        """The masks before momentum, and the steps taken."""
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
    """Armijo backtracking along the gradient; a step that finds no decrease leaves the masks as they are."""

    def __init__(self, step_size: float, state: State = MappingProxyType({})) -> None:
        self._first = step_size * FIRST_TRIAL

    @property
    def state(self) -> State:
        """Nothing: each step is a search of its own."""
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
"""Optimisers by name, made from the size of the first step."""


class Average:
    """The mean of the masks over the last iterations; the newest masks before those."""

    def __init__(self, masks: Tensor, state: State = MappingProxyType({}), *, share: float = AVERAGED) -> None:
        """Starts with the first masks, or where another average with this state stopped.

        Args:
            masks: The first masks.
            state: Of another average.
            share: Of the iterations, the last ones, whose masks are averaged; 0 keeps the newest masks.
        """
        self._share = share
        self._sum, self._count = state.get("sum", masks), int(state.get("count", 0))
        self._changes = state.get("changes", torch.full((SETTLED_STEPS,), torch.inf))

        self.untouched = not state
        """Whether nothing was added yet."""

    @property
    def state(self) -> State:
        """The sum, how many masks it is of, and what the last ones changed."""
        return {"sum": self._sum, "count": torch.tensor(self._count), "changes": self._changes}

    @property
    def masks(self) -> Tensor:
        """The mean so far."""
        return self._sum / max(self._count, 1)

    def add(self, masks: Tensor, share: float) -> None:
        """Adds the masks of an iteration, done when `share` of all were done."""
        self.untouched = False
        before = self.masks
        counts = share >= 1 - self._share and self._share > 0
        self._sum = self._sum + masks if counts and self._count else masks
        self._count += counts
        change = (self.masks - before).abs().mean().reshape(1)
        self._changes = torch.cat([self._changes[1:], change.to(self._changes)])

    def settled(self, tolerance: float) -> bool:
        """Whether each of the last masks changed the mean by less than a tolerance, cell by cell in the mean."""
        return bool((self._changes < tolerance).all())


def _smoothing(masks: Tensor) -> float:
    """Returns the width of the blur of a step, in cells."""
    return masks.shape[-1] / SMOOTHED


def _fineness(masks: Tensor) -> float:
    """Returns the width of the blur of a gradient, in cells; 0 up to masks of `COARSE` cells a side.

    Each cell of a finer mask has less to say and the more noise: steps that only follow the signs of it form no mask.
    """
    return max(0.0, masks.shape[-1] / COARSE - 1) / 2


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Blurs (n, h, w) with a Gaussian of `sigma` cells; 0 leaves it as it is."""
    if sigma <= 0:
        return values
    rows, columns = (_blurring(cells, sigma).to(values) for cells in values.shape[-2:])
    return rows @ values @ columns.mT


@functools.lru_cache(maxsize=64)
def _blurring(cells: int, sigma: float) -> Tensor:
    """Returns what each cell of a line adds to each of the blurred ones, of shape (cells, cells); ends are repeated."""
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    sources = (torch.arange(cells).unsqueeze(1) + offsets.long()).clamp_(0, cells - 1)
    return torch.zeros(cells, cells).scatter_add_(1, sources, (kernel / kernel.sum()).expand(cells, -1))


def stratified(rows: int, points: int, generator: torch.Generator) -> Tensor:
    """Returns random points in [0, 1) of shape (rows, points), one in each of `points` equal strata."""
    offsets = torch.arange(points, dtype=torch.float32) + torch.rand(rows, points, generator=generator)
    return offsets / max(points, 1)
