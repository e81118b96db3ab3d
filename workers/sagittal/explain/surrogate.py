"""A guess of what each patch adds, from all scores known so far: it proposes sets to score, and decides nothing.

A ridge regression of the log-odds on the patches shown, in which sets near the size of interest weigh most. Guesses
are drawn from the posterior (Thompson sampling): patches of which little is known get their turn, and the surer the
regression, the less is tried at random. A guess proposes a set of its best patches, or exchanges the worst patches of
a known set for better ones: the regression is linear and the model is not, so what works together is found by exchange.
"""

import math
from collections.abc import Mapping

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


def guesses(
    scores: Mapping[int, Scored], grid: int, size: float, count: int, noise: float, generator: torch.Generator
) -> Tensor:
    """Returns draws of what each patch adds in log-odds, of shape (count, patches).

    Args:
        scores: What is known.
        grid: Side of the grid.
        size: Patches of the sets of interest.
        count: Number of draws.
        noise: Standard deviation of an observation in log-odds; the larger, the bolder the guesses.
        generator: Source of the draws.
    """
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


def best_patches(guess: Tensor, region: int, count: int) -> int:
    """Returns the set of the `count` best patches of a region by a guess."""
    patches = torch.tensor(members(region), dtype=torch.long)
    return bits_of(patches[guess[patches].topk(count).indices].tolist())


def exchanged(guess: Tensor, region: int, bits: int, *, out: int, into: int) -> int:
    """Returns a set of a region with its worst patches by a guess taken out, and the best others taken in."""
    outside = region & ~bits
    kept = bits & ~best_patches(-guess, bits, min(out, bits.bit_count()))
    return kept | best_patches(guess, outside, min(into, outside.bit_count()))
