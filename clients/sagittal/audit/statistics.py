"""Statistics of an audit: permutation tests, bootstrap intervals, and control of the false discovery rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

#: Draws of a permutation test and of a bootstrap.
DRAWS = 10_000

#: Confidence of all intervals.
CONFIDENCE = 0.95

#: Seed of all draws.
_SEED = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """The change of a score by an intervention, beyond that by the same intervention elsewhere."""

    mean: float
    """Mean difference of probabilities, candidate minus controls."""
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    p: float
    """One-sided p-value of the permutation test."""
    size: float
    """Effect size: the mean over the standard deviation of the differences (Cohen's d of paired samples)."""
    images: int
    """Number of images whose region, background or colour was taken away or added."""

    def change(self, sign: int) -> "Effect":
        """Returns the effect as a change of the score: with the sign -1 for a fall."""
        low, high = sorted((sign * self.low, sign * self.high))
        return replace(self, mean=sign * self.mean, low=low, high=high, size=sign * self.size)

    @property
    def text(self) -> str:
        """The mean with its interval."""
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def measure_effect(candidate: Numbers, controls: Numbers) -> Effect:
    """Returns the effect of a candidate over its controls.

    The test permutes within an image: under the null hypothesis, the candidate is exchangeable with its controls.
    Images are independent only if none has another's controls.

    Args:
        candidate: Change for each image, of shape (n,), n at least 1.
        controls: Changes by the same intervention elsewhere, of shape (n, controls).
    """
    generator = np.random.default_rng(_SEED)
    differences = candidate - controls.mean(1)
    together = np.concatenate([candidate[:, None], controls], 1)
    choice = generator.integers(0, together.shape[1], (DRAWS, len(candidate)))
    drawn = together[np.arange(len(candidate)), choice].mean(1)
    p = (1 + int((drawn >= candidate.mean() - 1e-12).sum())) / (1 + DRAWS)
    low, high = bootstrap(differences, generator)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    mean = float(differences.mean())
    return Effect(mean, low, high, p, mean / max(spread, 1e-6), len(candidate))


def bootstrap(values: Numbers, generator: np.random.Generator | None = None) -> tuple[float, float]:
    """Returns the ends of the percentile bootstrap interval of a mean.

    Draws say how often each distinct value comes, so that counts and shares of very many images need little memory.
    """
    generator = np.random.default_rng(_SEED) if generator is None else generator
    distinct, counts = np.unique(values, return_counts=True)
    means = generator.multinomial(len(values), counts / len(values), DRAWS) @ distinct / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def adjust(values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Benjamini and Hochberg (1995), which bound the false discovery rate, in order."""
    order = np.argsort(values)
    count = len(values)
    adjusted = [0.0] * count
    smallest = 1.0
    for rank in range(count, 0, -1):
        place = int(order[rank - 1])
        smallest = min(smallest, values[place] * count / rank)
        adjusted[place] = smallest
    return adjusted


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Returns the probability of at least so many successes."""
    if successes <= 0:
        return 1.0
    if not 0 < probability < 1:
        return float(probability >= 1)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(probability) + (trials - k) * math.log1p(-probability)
        for k in range(successes, trials + 1)
    ]  # fmt: skip
    peak = max(logs)
    return min(1.0, math.exp(peak) * math.fsum(math.exp(each - peak) for each in logs))
