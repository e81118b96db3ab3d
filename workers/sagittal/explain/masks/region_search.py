"""Ordered region search: an order of the image, moved region by region along the gradients of its own curves.

Searches order the regions of an image directly by what insertion and deletion measure. The full greedy search adds the
region that raises the inserted score minus the deleted score most, and scores every region at every step (Chen et al.:
Less is More: Fewer Interpretable Region via Submodular Subset Selection, ICLR 2024). With 55 regions it takes about
3,000 evaluations. This method spends a sixth of that:

- *The prior* is the mask of a short iGOS++ descent. It gives the first order of the cells.
- *Regions* are superpixels, on the cells of the mask.
- *The ascent.* In each step, level sets of the order are inserted and deleted at random areas. The gradients of these
  scores state how the area between both curves changes if a cell moves up, for all cells at once: a step costs eight
  evaluations, as many as a greedy search spends on the gain of four regions. A cell moves mostly by the mean gradient
  of its region. Orders in which each cell follows its own gradient fit the baseline that they were searched on: they
  have better curves on it, and worse ones on others.
- *The choice.* The mean order of the last steps and the prior are inserted and deleted at a few areas; the better one
  wins.

The saliency of a cell is the slope of insertion minus deletion at its place in the order, made monotone, so that the
share of saliency that an occlusion keeps is an estimate of the score that it keeps. Its peak is the largest gap between
showing and hiding the same part, as a share of the unmasked score: it is 0 if the model ignores the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import OutOfBudget, Request, gradient_of
from sagittal.explain.events import Checkpoint, Event, Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.masks.descent import SMOOTHED, smoothed, stratified
from sagittal.explain.masks.igos import IGOSPlusPlus
from sagittal.explain.masks.level_sets import AREAS, level_gradient, level_sets, most_salient
from sagittal.explain.masks.optimisation import Additions
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.steps import Steps, relay
from sagittal.explain.superpixels import superpixels

POINTS, LEVELS = 1, 4
"""Points and level sets in each step of the descent: six evaluations."""

AREAS_PER_STEP = 4
"""Areas at which each step of the ascent inserts and deletes the order: eight evaluations."""

REGIONAL = 0.8
"""Share of the mean gradient of its region in the move of a cell; the remainder is its own gradient."""

FLAT = 0.05
"""Part of the saliency that reflects only the order, so that no two places in the order have the same saliency."""

FIRST_MOVE = 0.03
"""Root mean square of the moves of the first step, as a share of all places in the first order; it decays to zero."""

LARGEST_MOVE = 3.0
"""Largest move of a cell, in root mean squares."""

MOMENTUM, MEMORY = 0.8, 0.95
"""Shares of the earlier steps in the mean of the gradients, and in their mean square."""

AVERAGED = 0.5
"""Share of the steps, the last ones, whose orders are averaged."""

DESCENT_SHARE = 0.35
"""Share of the descent in the progress."""

_EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedRegionSearch(Explainer):
    """An order of the image that starts from the mask of a descent, and moves along the gradients of its curves."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    summary: ClassVar[str] = "The order of an iGOS++ mask, moved superpixel by superpixel until its curves are best"

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    regions: int = parameter(60, "Number of superpixels aimed at; there are often fewer", minimum=4, maximum=196)
    iterations: int = parameter(
        36, "Steps of the descent, six evaluations each, and of the search, eight each", minimum=1, maximum=1000
    )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields progress, forming masks, a checkpoint after each step, and the final mask (mask_size, mask_size)."""
        search = _Search(self, problem)
        try:
            yield from search.run()
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        yield SaliencyMask(search.saliency)


class _Search:
    """The state of one job: the regions, the prior, the order so far, and the best heatmap known."""

    def __init__(self, settings: OrderedRegionSearch, problem: Problem) -> None:
        """Starts, or resumes from the last checkpoint of an earlier attempt."""
        self._settings, self._problem = settings, problem
        state = within(problem.restored, "search")
        labels = state.get("labels")
        if labels is None:
            labels = superpixels(problem.image, settings.regions, settings.mask_size)
        self._labels = labels.to(problem.image.device)
        self._prior = state.get("prior")
        self._restored = within(state, "ascent")
        self.saliency = problem.full(settings.mask_size, 0.0)

    def run(self) -> Steps[None]:
        """Yields requests and events; `saliency` is the best heatmap at any time."""
        if self._prior is None:
            self._prior = yield from self._descend()
            yield self._checkpoint()
        ascent = Ascent(ranks(self._prior), self._labels, self._restored)
        yield from self._ascend(ascent, self._prior)
        yield from self._choose([ascent.order, ranks(self._prior)])

    def _descend(self) -> Steps[Tensor]:
        """Returns the saliency of a descent."""
        descent = IGOSPlusPlus(
            mask_size=self._settings.mask_size,
            iterations=self._settings.iterations,
            points=POINTS,
            levels=LEVELS,
            additions=Additions(best_scale=False),
        )
        inner = replace(self._problem, restored=within(self._problem.restored, "descent"))
        spent: list[Truncated] = []

        def change(item: Request | Event) -> Request | Event | None:
            match item:
                case SaliencyMask():
                    self.saliency = item.saliency
                    return replace(item, final=False)
                case Progress():
                    return replace(item, fraction=DESCENT_SHARE * item.fraction)
                case Checkpoint():
                    return self._checkpoint(descent=item.state)
                case Truncated():
                    spent.append(item)
                    return None
            return item

        yield from relay(descent.explain(inner), change)
        if spent:
            raise OutOfBudget(spent[0].limit)
        return self.saliency

    def _ascend(self, ascent: "Ascent", prior: Tensor) -> Steps[None]:
        """Moves the order; forming masks have the values of the prior in the new order."""
        steps = self._settings.iterations
        self.saliency = reordered(prior, ascent.order)
        while ascent.step < steps:
            u = stratified(1, AREAS_PER_STEP, self._problem.generator("areas", ascent.step))[0].to(prior.device)
            shown, slope = level_sets(ascent.newest, u)
            scores = yield from self._problem.evaluate(torch.cat([shown, 1 - shown]), gradient=True)
            inserted, deleted = gradient_of(scores).chunk(2)
            # Areas are u squared: the weight u makes the mean over u an integral over areas.
            gradient = level_gradient((inserted + deleted) * u.view(-1, 1, 1), slope)
            ascent.move(gradient, ascent.step / steps)
            self.saliency = reordered(prior, ascent.order)
            yield Progress(DESCENT_SHARE + (1 - DESCENT_SHARE) * ascent.step / steps, phase="search")
            yield SaliencyMask(self.saliency, final=False)
            yield self._checkpoint(ascent=ascent.state)

    def _choose(self, orders: Sequence[Tensor]) -> Steps[None]:
        """Inserts and deletes orders (size, size) at a few areas, and keeps the best."""
        inserted = torch.cat([most_salient(each) for each in orders])
        scores = yield from self._problem.evaluate(torch.cat([inserted, 1 - inserted]))
        both = scores.target.cpu().to(torch.float64).view(2, len(orders), len(AREAS))
        start = self._problem.baseline_score - self._problem.unmasked_score
        gaps = torch.nn.functional.pad(both[0] - both[1], (1, 1))
        gaps[:, 0], gaps[:, -1] = start, -start
        best = int(torch.trapezoid(gaps, torch.tensor(PLACES, dtype=torch.float64)).argmax())
        self.saliency = shaped(orders[best], gaps[best], self._problem.unmasked_score)
        yield Progress(1.0, phase="search")

    def _checkpoint(self, *, descent: State = MappingProxyType({}), ascent: State = MappingProxyType({})) -> Checkpoint:
        """Returns everything that later steps depend on, with the state of the part that runs."""
        state = {"labels": self._labels} | ({} if self._prior is None else {"prior": self._prior})
        return Checkpoint(prefixed("search", state | prefixed("ascent", ascent)) | prefixed("descent", descent))


def regional_means(values: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over the region of each cell, of values (size, size) and the regions (size, size) of cells."""
    flat, regions = values.flatten(), labels.flatten()
    sums = torch.zeros(int(labels.max()) + 1, device=values.device).index_add_(0, regions, flat)
    return (sums / torch.bincount(regions))[labels]


class Ascent:
    """An order of cells, moved along gradients: their mean over each region and over the last steps, at unit scale."""

    def __init__(self, order: Tensor, labels: Tensor, state: State) -> None:
        """Starts, or resumes from the state of another ascent.

        Args:
            order: The first order, in [0, 1], of shape (size, size): higher values come first.
            labels: The region of each cell, int64 of shape (size, size).
            state: State of another ascent.
        """
        self._labels = labels
        zero = torch.zeros_like(order)
        self.newest = state.get("newest", order)
        """The order after the last step, of shape (size, size)."""
        self._mean, self._square = state.get("mean", zero), state.get("square", torch.zeros((), device=order.device))
        self._sum, self._count = state.get("sum", zero), int(state.get("count", 0))
        self.step = int(state.get("step", 0))
        """Number of steps taken."""

    @property
    def state(self) -> State:
        """Everything that the next step depends on, except its arguments."""
        return {
            "newest": self.newest,
            "mean": self._mean,
            "square": self._square,
            "sum": self._sum,
            "count": torch.tensor(self._count),
            "step": torch.tensor(self.step),
        }

    @property
    def order(self) -> Tensor:
        """The mean order of the last steps, of shape (size, size); until those, the newest one."""
        return self._sum / self._count if self._count else self.newest

    def move(self, gradient: Tensor, share: float) -> None:
        """Moves all cells.

        Args:
            gradient: Of the area between the curves by the place of each cell, of shape (size, size).
            share: Completed share of the steps, from 0 up to 1.
        """
        self.step += 1
        regional = REGIONAL * regional_means(gradient, self._labels) + (1 - REGIONAL) * gradient
        blurred = smoothed(regional.unsqueeze(0), gradient.shape[-1] / SMOOTHED)[0]
        self._mean = MOMENTUM * self._mean + (1 - MOMENTUM) * blurred
        self._square = MEMORY * self._square + (1 - MEMORY) * (blurred**2).mean()
        scale = (self._square / (1 - MEMORY**self.step)).sqrt() + _EPSILON
        moves = self._mean / (1 - MOMENTUM**self.step) / scale
        self.newest = self.newest + FIRST_MOVE * (1 - share) * moves.clamp(-LARGEST_MOVE, LARGEST_MOVE)
        if share >= 1 - AVERAGED:
            self._sum, self._count = self._sum + self.newest, self._count + 1


PLACES = (0.0, *AREAS, 1.0)
"""Shares of the image at which a choice is scored."""


def ranks(saliency: Tensor) -> Tensor:
    """Returns the share of the cells that come after each cell, of the saliency's shape."""
    order = saliency.flatten().argsort(stable=True)
    after = torch.empty(saliency.numel(), device=saliency.device)
    after[order] = torch.arange(saliency.numel(), dtype=torch.float32, device=saliency.device) / saliency.numel()
    return after.view_as(saliency)


def reordered(saliency: Tensor, order: Tensor) -> Tensor:
    """Returns the values of a saliency (size, size), the largest where the order (size, size) is highest."""
    places = order.flatten().argsort(stable=True)
    values = torch.empty_like(saliency.flatten())
    values[places] = saliency.flatten().sort().values
    return values.view_as(saliency)


def shaped(order: Tensor, gaps: Tensor, unmasked_score: float) -> Tensor:
    """Returns the saliency (size, size) of cells in an order: the slope of the gaps at the place of each cell.

    Args:
        order: Higher values come first, of shape (size, size).
        gaps: Score of showing a part minus that of hiding it, at the shares `PLACES` of the image.
        unmasked_score: The score of the image.
    """
    places = 1 - ranks(order).to(torch.float64).cpu()
    at = torch.tensor(PLACES, dtype=torch.float64)
    slopes = (gaps.diff() / at.diff()).clamp(min=0)
    falling = slopes.flip(0).cummax(0).values.flip(0)  # no later part is more salient
    relative = falling / falling[0].clamp(min=1e-12)
    middles = (at[1:] + at[:-1]) / 2
    values = _interpolated(places.flatten(), middles, relative).view_as(places)
    peak = float((gaps.max() / max(unmasked_score, 1e-12)).clamp(0, 1))
    return (peak * ((1 - FLAT) * values + FLAT * (1 - places))).to(order)


def _interpolated(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Returns values between known places, linearly; beyond the outermost ones they are constant."""
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    left = right - 1
    share = ((x - at[left]) / (at[right] - at[left])).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])
