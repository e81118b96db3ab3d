"""A guess of what each patch adds, from all scores known so far: it orders the search and decides nothing."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sagittal.explain.scoring import Scored

RIDGE = 2.0
"""Weight of the squared coefficients, in units of one observation."""

FLOOR = 1e-5
"""Scores are kept this far from 0 and 1 before their log-odds are taken."""


def log_odds(score: float) -> float:
    """Returns the log-odds of a probability, finite at 0 and 1."""
    bounded = min(max(score, FLOOR), 1 - FLOOR)
    return math.log(bounded / (1 - bounded))


def contributions(scores: Mapping[int, Scored], patches: int) -> list[float]:
    """Returns for each patch its coefficient in a ridge regression of the log-odds on the sets scored so far."""
    width = (patches + 7) // 8
    packed = bytearray(b"".join(bits.to_bytes(width, "little") for bits in scores))
    words = torch.frombuffer(packed, dtype=torch.uint8).view(-1, width, 1)
    present = ((words >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1)[:, :patches].to(torch.float64)
    odds = torch.tensor([log_odds(scored.score) for scored in scores.values()], dtype=torch.float64)
    return _ridge(present - present.mean(0), odds - odds.mean()).tolist()


def _ridge(features: Tensor, values: Tensor) -> Tensor:
    penalty = RIDGE * torch.eye(features.shape[1], dtype=features.dtype)
    coefficients: Tensor = torch.linalg.solve(features.T @ features + penalty, features.T @ values)
    return coefficients
