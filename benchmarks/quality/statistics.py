"""Uncertainty of a mean over images: bootstrap intervals and paired comparisons.

Seeds are arguments, so that results are reproducible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
"""Number of resamples of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over images with its confidence interval."""

    mean: float
    low: float
    high: float
    """Both bounds are infinite for a single image, which gives no information on others."""
    count: int

    def __format__(self, specification: str) -> str:
        """Formats the three numbers alike, as `mean [low, high]`."""
        mean, low, high = (format(value, specification) for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One method against another on the same images."""

    difference: Interval
    """Mean of the first minus the second."""
    first_higher: int
    """Number of images on which the first is higher."""
    second_higher: int
    ties: int


def bootstrap(values: ArrayLike, *, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Returns the mean with its percentile bootstrap interval.

    Args:
        values: One finite number per image.
        seed: Seed of the resampling.
        level: Share of resampled means inside the interval, in (0, 1).
        resamples: Number of resamples.
    """
    numbers = _checked(values)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a number between 0 and 1")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    means = _resampled_means(numbers, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(numbers))


def compare(first: Sequence[float], second: Sequence[float], *, seed: int, level: float = 0.95) -> Comparison:
    """Compares two methods image by image; pairing removes the differences in difficulty between images."""
    one, other = _checked(first), _checked(second)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} images; give the same images in the same order for both")
    difference = one - other
    return Comparison(
        bootstrap(difference, seed=seed, level=level),
        first_higher=int((difference > 0).sum()),
        second_higher=int((difference < 0).sum()),
        ties=int((difference == 0).sum()),
    )


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Returns the rank correlation of two arrays of equal shape, ties by their mean rank; 0 if one is constant."""
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.size == 0:
        raise ValueError(f"shapes {one.shape} and {other.shape}; give two arrays of equal shape")
    left, right = _centred_ranks(one.ravel()), _centred_ranks(other.ravel())
    norm = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / norm if norm > 0 else 0.0


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ValueError("values must hold at least one number per image, all of them finite")
    return numbers


def _resampled_means(
    numbers: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    counts = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=resamples)
    means: NDArray[np.float64] = counts @ numbers / len(numbers)
    return means


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (sizes.cumsum() - sizes + (sizes - 1) / 2)[group]
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred
