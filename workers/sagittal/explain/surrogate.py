"""A guess of what each patch adds, from all scores known so far: it proposes sets to score, and decides nothing.

A ridge regression of the log-odds on the patches shown, in which sets near the size of interest weigh most. Its
proposals are drawn from the posterior (Thompson sampling): patches of which little is known get their turn, and the
surer the guess, the less is tried at random.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sagittal.explain.patches import bits_of, masks_of, members
from sagittal.explain.scoring import Scored

RIDGE = 1.0
"""Weight of the squared coefficients, in units of one observation."""

FLOOR = 1e-5
"""Scores are kept this far from 0 and 1 before their log-odds are taken."""

REACH = 8.0
"""Sets whose size is this many patches off weigh 1/e ..."""

LEAST_WEIGHT = 0.02
"""... and none weighs less than this."""


def log_odds(score: float) -> float:
    """Returns the log-odds of a probability, finite at 0 and 1."""
    bounded = min(max(score, FLOOR), 1 - FLOOR)
    return math.log(bounded / (1 - bounded))


def propose(
    scores: Mapping[int, Scored], grid: int, region: int, sizes: Sequence[int], noise: float, generator: torch.Generator
) -> list[int]:
    """Returns one set of each size within a region: the best patches by one draw from the posterior for each.

    Args:
        scores: What is known.
        grid: Side of the grid.
        region: Patches that may be used, at least as many as the largest size.
        sizes: Patches of each proposal.
        noise: Standard deviation of an observation in log-odds; the larger, the bolder the proposals.
        generator: Source of the draws.
    """
    allowed = torch.tensor(members(region))
    draws = _draws(scores, grid, sum(sizes) / len(sizes), len(sizes), noise, generator)[:, allowed]
    chosen = [draw.topk(size).indices for draw, size in zip(draws, sizes, strict=True)]
    return [bits_of(allowed[indices].tolist()) for indices in chosen]


def _draws(
    scores: Mapping[int, Scored], grid: int, size: float, count: int, noise: float, generator: torch.Generator
) -> Tensor:
    """Returns draws of the coefficients, of shape (count, patches)."""
    shown = masks_of(list(scores), grid, torch.device("cpu")).flatten(1).to(torch.float64)
    odds = torch.tensor([log_odds(scored.score) for scored in scores.values()], dtype=torch.float64)
    weights = torch.exp(-(((shown.sum(1) - size) / REACH) ** 2)) + LEAST_WEIGHT
    centre = weights / weights.sum()
    features, values = shown - centre @ shown, odds - centre @ odds
    weighted = weights.unsqueeze(1) * features
    factor = torch.linalg.cholesky(weighted.T @ features + RIDGE * torch.eye(grid**2, dtype=torch.float64))
    mean = torch.cholesky_solve((weighted.T @ values).unsqueeze(1), factor)
    normal = torch.randn(grid**2, count, generator=generator).to(torch.float64)
    draws: Tensor = mean + noise * torch.linalg.solve_triangular(factor.T, normal, upper=True)
    return draws.T
