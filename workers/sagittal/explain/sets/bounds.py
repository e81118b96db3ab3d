"""A lower confidence bound on a probability that is valid whenever the draws stop.

Draws are independent and hold with an unknown probability. For each value p that it may have, the likelihood of the
draws under a mixture of probabilities, divided by their likelihood under p, is a non-negative martingale with mean 1 if
p is the truth (Robbins, Annals of Mathematical Statistics 1970). By Ville's inequality it ever reaches 1/error with a
probability of at most `error`. The values below which it has reached 1/error are excluded: at all numbers of draws
together, the bound exceeds the truth with a probability of at most `error`, so that a look at the draws may decide
whether to continue. The mixture is a beta distribution, for which the likelihood is exact (Howard, Ramdas, McAuliffe,
Sekhon: Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics 2021).
"""

from math import exp, inf, lgamma, log

HELD, FAILED = 1.0, 0.1
"""Parameters of the beta distribution: most of its mass is near 1, where claims of robustness are decided."""

HALVINGS = 60
"""Halvings of the interval that contains the bound: to the precision of a float."""


def lower_bound(held: int, draws: int, error: float) -> float:
    """Returns the greatest lower bound on the probability that a draw holds.

    Args:
        held: Number of draws that held.
        draws: Number of draws.
        error: Probability that the bound exceeds the truth after any number of draws, in (0, 1).
    """
    if not held:
        return 0.0
    # The likelihood under p rises up to p = held / draws, so that the excluded values are an interval from 0.
    high = log(held / draws)
    low = high - 1.0
    while log_evidence(held, draws, exp(low)) < -log(error):
        low, high = low - (high - low), low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        excluded = log_evidence(held, draws, exp(middle)) >= -log(error)
        low, high = (middle, high) if excluded else (low, middle)
    return exp(low)


def draws_needed(probability: float, error: float) -> int:
    """Returns the number of draws after which the bound reaches a probability if all of them held."""
    draws = 1
    while lower_bound(draws, draws, error) < probability:
        draws += 1
    return draws


def log_evidence(held: int, draws: int, probability: float) -> float:
    """Returns the logarithm of the martingale: the likelihood of the draws under the mixture over that under p."""
    failed = draws - held
    mixture = _log_beta(HELD + held, FAILED + failed) - _log_beta(HELD, FAILED)
    if (failed and probability >= 1) or (held and probability <= 0):
        return inf
    under = held * log(probability) if held else 0.0
    return mixture - under - (failed * log(1 - probability) if failed else 0.0)


def _log_beta(one: float, other: float) -> float:
    return lgamma(one) + lgamma(other) - lgamma(one + other)
