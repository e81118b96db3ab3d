"""Ordered region search: an order of superpixels found from both ends, with the mask of a descent as a prior.

Searches order the regions of an image directly by what insertion and deletion measure. The full greedy search adds the
region that raises the inserted score minus the deleted score most, and scores every region at every step (Chen et al.:
Less is More: Fewer Interpretable Region via Submodular Subset Selection, ICLR 2024). With 55 regions it takes about
3,000 evaluations. This method spends a sixth of that:

- *Regions* are superpixels, on the cells of the mask.
- *The prior* is the mask of a short iGOS++ descent. Its mean over a region orders regions badly: the descent selects
  single cells. Its cells, and its own order, enter the result.
- *Orders.* A walk puts one region at either end of the order in each step. The regions between the ends are shown by a
  share, the same for all. The gradient of that image's score, minus that of its complement's, estimates the effect of
  all regions at once, for two evaluations. Walks differ in their shares: a small one shows what brings the class
  back, a large one what takes it away.
- *A regression* of the log-odds of all these scores on the shown shares gives another order at no cost.
- *The choice.* Averages of these orders and the prior are inserted and deleted at a few areas; the best one wins. The
  errors of the orders differ, so that averages are better than each.

The saliency of a cell is the slope of insertion minus deletion at its place in the order, made monotone, so that the
share of saliency that an occlusion keeps is an estimate of the score that it keeps. Its peak is the largest gap between
showing and hiding the same part, as a share of the unmasked score: it is 0 if the model ignores the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import OutOfBudget, Request, gradient_of
from sagittal.explain.events import Checkpoint, Event, Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.masks.igos import IGOSPlusPlus
from sagittal.explain.masks.level_sets import AREAS, most_salient
from sagittal.explain.masks.optimisation import Additions
from sagittal.explain.masks.superpixels import superpixels
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem, State, prefixed, within
from sagittal.explain.steps import Steps, relay

WALKS = ((0.0, 0.2, 0.4), (0.3, 0.7))
"""Shares by which the regions between the ends are shown, in turn, for each walk. At a share below 1/2 a region goes to
the top of the order, otherwise to the bottom."""

REST = 1 / 8
"""A walk ends when this share of the regions is left between the ends; its last gradients order them."""

BLENDS: Sequence[Mapping[str, float]] = (
    {"prior": 1.0},
    {"prior": 1.0, "walk-0": 1.0},
    {"prior": 1.0, "walk-1": 1.0},
    {"prior": 1.0, "walk-0": 1.0, "walk-1": 1.0},
    {"prior": 1.0, "walk-0": 1.0, "walk-1": 1.0, "regression": 1.0},
    {"walk-0": 1.0, "walk-1": 1.0, "regression": 1.0},
    {"walk-1": 1.0, "regression": 1.0},
    {"walk-1": 1.0},
    {"walk-0": 1.0},
    {"prior": 2.0, "walk-0": 1.0, "walk-1": 1.0},
)
"""Weights of the orders in each average that the choice is made from."""

RIDGE = 1.0
"""Weight of the squared coefficients of the regression, in units of one observation."""

FLOOR = 1e-3
"""Scores are kept at this distance from 0 and 1 before their log-odds are computed."""

FLAT = 0.05
"""Part of the saliency that reflects only the order, so that no two places in the order have the same saliency."""

FAINT = 1e-3
"""Weight of the prior's order within a region."""

POINTS, LEVELS = 1, 4
"""Points and level sets in each step of the descent: six evaluations."""

DESCENT_SHARE, WALKS_SHARE = 0.4, 0.4
"""Shares of the progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedRegionSearch(Explainer):
    """An order of superpixels, found by walks along gradients from both ends, united with the mask of a descent."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    summary: ClassVar[str] = "Superpixels ordered by their effect, from both ends, united with an iGOS++ mask"

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    regions: int = parameter(60, "Number of superpixels aimed at; there are often fewer", minimum=4, maximum=196)
    iterations: int = parameter(36, "Steps of the descent, six evaluations each", minimum=1, maximum=1000)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields progress, forming masks, a checkpoint after each step, and the final mask (mask_size, mask_size)."""
        search = _Search(self, problem)
        try:
            yield from search.run()
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        yield SaliencyMask(search.saliency)


class _Search:
    """The state of one job: the regions, the prior, the walks so far, and the best heatmap known."""

    def __init__(self, settings: OrderedRegionSearch, problem: Problem) -> None:
        """Starts, or resumes from the last checkpoint of an earlier attempt."""
        self._settings, self._problem = settings, problem
        state = within(problem.restored, "search")
        labels = state.get("labels")
        if labels is None:
            labels = superpixels(problem.image, settings.regions, settings.mask_size)
        self._regions = Regions(labels.to(problem.image.device))
        self._prior = state.get("prior")
        self._walks = [Walk(self._regions.count, shares, within(state, str(i))) for i, shares in enumerate(WALKS)]
        self.saliency = problem.full(settings.mask_size, 0.0)

    def run(self) -> Steps[None]:
        """Yields requests and events; `saliency` is the best heatmap at any time."""
        if self._prior is None:
            self._prior = yield from self._descend()
            yield self._checkpoint({})
        self.saliency = self._prior
        yield from self._walk()
        yield from self._choose(self._prior)

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
                    return self._checkpoint(item.state)
                case Truncated():
                    spent.append(item)
                    return None
            return item

        yield from relay(descent.explain(inner), change)
        if spent:
            raise OutOfBudget(spent[0].limit)
        return self.saliency

    def _walk(self) -> Steps[None]:
        total = sum(walk.length for walk in self._walks)
        for walk in self._walks:
            while not walk.done:
                shown = walk.shown.to(self._problem.image.device)
                masks = self._regions.masks(torch.stack([shown, 1 - shown]))
                scores = yield from self._problem.evaluate(masks, gradient=True)
                walk.place(self._regions.sums(gradient_of(scores)).sum(0).cpu(), scores.target.cpu())
                steps = sum(each.step for each in self._walks)
                yield Progress(DESCENT_SHARE + WALKS_SHARE * steps / total, phase="search")
                yield self._checkpoint({})

    def _choose(self, prior: Tensor) -> Steps[None]:
        """Inserts and deletes averages of the orders at a few areas, and keeps the best."""
        candidates = self._candidates(ranks(prior))
        inserted = torch.cat([most_salient(each) for each in candidates])
        scores = yield from self._problem.evaluate(torch.cat([inserted, 1 - inserted]))
        both = scores.target.cpu().to(torch.float64).view(2, len(candidates), len(AREAS))
        start = self._problem.baseline_score - self._problem.unmasked_score
        gaps = torch.nn.functional.pad(both[0] - both[1], (1, 1))
        gaps[:, 0], gaps[:, -1] = start, -start
        best = int(torch.trapezoid(gaps, torch.tensor(PLACES, dtype=torch.float64)).argmax())
        self.saliency = shaped(candidates[best], gaps[best], self._problem.unmasked_score)
        yield Progress(1.0, phase="search")

    def _candidates(self, prior: Tensor) -> list[Tensor]:
        """Returns averages of the orders and the prior's, each of shape (size, size); higher values come first."""
        device = self._problem.image.device
        orders = {f"walk-{i}": self._regions.spread(walk.order.to(device)) for i, walk in enumerate(self._walks)}
        observations = [each for walk in self._walks for each in walk.observations]
        effects = regression(torch.stack([x for x, _ in observations]), torch.stack([y for _, y in observations]))
        orders["regression"] = self._regions.spread(effects.argsort(descending=True, stable=True).to(device))
        orders["prior"] = prior
        return [sum((weight * orders[name] for name, weight in blend.items()), start=FAINT * prior) for blend in BLENDS]

    def _checkpoint(self, descent: State) -> Checkpoint:
        """Returns everything that later steps depend on, with the state of the descent while it runs."""
        state = {"labels": self._regions.labels} | ({} if self._prior is None else {"prior": self._prior})
        for index, walk in enumerate(self._walks):
            state |= prefixed(str(index), walk.state)
        return Checkpoint(prefixed("search", state) | prefixed("descent", descent))


class Regions:
    """A partition of the cells of a mask."""

    def __init__(self, labels: Tensor) -> None:
        """Takes the region of each cell, int64 of shape (size, size)."""
        self.labels = labels
        self.count = int(labels.max()) + 1
        self._areas = torch.bincount(labels.flatten(), minlength=self.count) / labels.numel()

    def masks(self, shown: Tensor) -> Tensor:
        """Returns masks (n, size, size) for the share (n, regions) by which each region is shown."""
        return shown[:, self.labels]

    def sums(self, cells: Tensor) -> Tensor:
        """Returns the sums over regions, (n, regions), of values (n, size, size)."""
        zero = torch.zeros(len(cells), self.count, device=cells.device)
        return zero.index_add_(1, self.labels.flatten(), cells.flatten(1).to(zero))

    def spread(self, order: Tensor) -> Tensor:
        """Returns the share of the image that comes after each cell's region in an order, of shape (size, size)."""
        areas = self._areas[order]
        after = torch.empty_like(areas)
        after[order] = 1 - areas.cumsum(0) + areas / 2
        return after[self.labels]


class Walk:
    """An order of regions that grows from both ends, one region a step."""

    def __init__(self, count: int, shares: Sequence[float], state: State) -> None:
        """Starts with no region placed, or resumes from the state of another walk."""
        self._shares = shares
        self._count = count
        self.length = max(1, count - int(REST * count) - 1)
        """Number of steps."""
        state = {name: tensor.cpu() for name, tensor in state.items()}
        self._top = state.get("top", torch.empty(0, dtype=torch.int64)).tolist()
        self._bottom = state.get("bottom", torch.empty(0, dtype=torch.int64)).tolist()
        self._last = state.get("last", torch.zeros(count))
        self._scores = [*state.get("scores", torch.empty(0, 2))]
        self._images = [*state.get("images", torch.empty(0, count))]

    @property
    def state(self) -> State:
        """The regions at both ends, the last gradient, and what was shown, with its scores and its complement's."""
        return {
            "top": torch.tensor(self._top, dtype=torch.int64),
            "bottom": torch.tensor(self._bottom, dtype=torch.int64),
            "last": self._last,
            "scores": torch.stack(self._scores) if self._scores else torch.empty(0, 2),
            "images": torch.stack(self._images) if self._images else torch.empty(0, self._count),
        }

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self._top) + len(self._bottom)

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.length

    @property
    def shown(self) -> Tensor:
        """The share (regions,) by which each region is shown in the next step."""
        shown = torch.full((self._count,), self._shares[self.step % len(self._shares)])
        shown[self._top], shown[self._bottom] = 1.0, 0.0
        return shown

    @property
    def order(self) -> Tensor:
        """All regions, the most effective first; the last gradient orders those that are not placed."""
        rest = self._rest()
        return torch.tensor(self._top + rest[self._last[rest].argsort(descending=True)].tolist() + self._bottom[::-1])

    @property
    def observations(self) -> list[tuple[Tensor, Tensor]]:
        """The share by which each region was shown, and the score, of all evaluated images."""
        pairs = zip(self._images, self._scores, strict=True)
        return [each for image, (one, other) in pairs for each in ((image, one), (1 - image, other))]

    def place(self, effects: Tensor, scores: Tensor) -> None:
        """Places the next region.

        Args:
            effects: Gradient of the score of the next image plus that of its complement, by region.
            scores: Both scores.
        """
        shown, rest = self.shown, self._rest()
        upwards = self._shares[self.step % len(self._shares)] < 0.5
        values = effects[rest]
        if upwards:
            self._top.append(int(rest[values.argmax()]))
        else:
            self._bottom.append(int(rest[values.argmin()]))
        self._last = effects
        self._images.append(shown)
        self._scores.append(scores)

    def _rest(self) -> Tensor:
        placed = torch.zeros(self._count, dtype=torch.bool)
        placed[self._top + self._bottom] = True
        return (~placed).nonzero().flatten()


def regression(shown: Tensor, scores: Tensor) -> Tensor:
    """Returns the effect of each region in log-odds by ridge regression.

    Args:
        shown: Share by which each region was shown, of shape (n, regions).
        scores: Of shape (n,).
    """
    features, odds = shown.to(torch.float64), torch.logit(scores.to(torch.float64), eps=FLOOR)
    features, odds = features - features.mean(0), odds - odds.mean()
    weight = RIDGE * torch.eye(features.shape[1], dtype=torch.float64)
    effects: Tensor = torch.linalg.solve(features.T @ features + weight, features.T @ odds)
    return effects


PLACES = (0.0, *AREAS, 1.0)
"""Shares of the image at which a choice is scored."""


def ranks(saliency: Tensor) -> Tensor:
    """Returns the share of the cells that come after each cell, of the saliency's shape."""
    order = saliency.flatten().argsort(stable=True)
    after = torch.empty(saliency.numel(), device=saliency.device)
    after[order] = torch.arange(saliency.numel(), dtype=torch.float32, device=saliency.device) / saliency.numel()
    return after.view_as(saliency)


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
