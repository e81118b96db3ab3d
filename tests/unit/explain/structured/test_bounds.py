"""The bound on a probability holds at every number of draws at once, in simulation and against closed forms."""

import math

import numpy as np
import pytest

from sagittal.explain.sets.bounds import FAILED, HELD, draws_needed, log_evidence, lower_bound

CASES, DRAWS, ERROR = 10_000, 400, 0.05


def evidence(held: np.ndarray, probability: float) -> np.ndarray:
    """Returns the logarithm of the martingale after each draw, for all cases at once."""
    draws = np.arange(1, DRAWS + 1)
    log_gamma = {start: np.array([math.lgamma(start + k) for k in range(DRAWS + 1)]) for start in (HELD, FAILED)}
    both = np.array([math.lgamma(HELD + FAILED + k) for k in range(DRAWS + 1)])
    mixture = log_gamma[HELD][held] + log_gamma[FAILED][draws - held] - both[draws]
    mixture -= log_gamma[HELD][0] + log_gamma[FAILED][0] - both[0]
    return mixture - held * math.log(probability) - (draws - held) * math.log(1 - probability)


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_in_10_000_cases_the_bound_exceeds_the_truth_at_most_at_its_stated_level_at_any_draw(truth):
    held = np.cumsum(np.random.default_rng(7).random((CASES, DRAWS)) < truth, axis=1)
    # The bound exceeds the truth exactly if the truth is excluded, and lies below the share of draws that held.
    wrong = (evidence(held, truth) >= -math.log(ERROR)) & (held / np.arange(1, DRAWS + 1) > truth)
    assert wrong.any(1).mean() <= ERROR
    case = int(wrong.any(1).argmax()) if wrong.any() else 0
    for draw in (0, 9, int(wrong[case].argmax()), DRAWS - 1):
        count = int(held[case, draw])
        assert (lower_bound(count, draw + 1, ERROR) > truth) == bool(wrong[case, draw])


def test_the_exact_bound_for_one_number_of_draws_would_not_hold_at_all_of_them():
    truth = 0.9
    held = np.cumsum(np.random.default_rng(7).random((CASES, DRAWS)) < truth, axis=1)
    distribution = np.zeros((DRAWS + 1, DRAWS + 1))
    distribution[0, 0] = 1
    for draw in range(DRAWS):
        distribution[draw + 1] = (1 - truth) * distribution[draw]
        distribution[draw + 1, 1:] += truth * distribution[draw, :-1]
    # The bound of Clopper and Pearson exceeds the truth if so many successes or more are unlikely.
    tails = np.cumsum(distribution[:, ::-1], axis=1)[:, ::-1]
    wrong = tails[np.arange(1, DRAWS + 1), held] < ERROR
    assert wrong[:, -1].mean() <= ERROR
    assert wrong.any(1).mean() > 2 * ERROR


def test_the_evidence_is_a_martingale_under_the_truth():
    for held, draws in ((0, 0), (3, 4), (10, 10), (0, 5)):
        for truth in (0.3, 0.9):
            now = math.exp(log_evidence(held, draws, truth))
            after = truth * math.exp(log_evidence(held + 1, draws + 1, truth))
            after += (1 - truth) * math.exp(log_evidence(held, draws + 1, truth))
            assert after == pytest.approx(now)
    assert log_evidence(0, 0, 0.4) == pytest.approx(0)


def test_the_bound_is_where_the_evidence_reaches_the_level():
    for held, draws in ((1, 1), (30, 30), (38, 40), (1, 50), (200, 1000)):
        bound = lower_bound(held, draws, ERROR)
        assert log_evidence(held, draws, bound) == pytest.approx(-math.log(ERROR))
        assert 0 < bound < held / draws
    assert lower_bound(0, 10, ERROR) == 0


def test_more_certainty_needs_more_draws():
    assert draws_needed(0.9, 0.05) == 33
    assert draws_needed(0.9, 0.01) > 33
    assert draws_needed(0.95, 0.05) > 60
    assert lower_bound(39, 40, 0.05) < lower_bound(40, 40, 0.05)
