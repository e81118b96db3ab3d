"""The statistics of an audit agree with values computed by hand."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from sagittal.audit.statistics import adjust, binomial_tail, measure_effect


@pytest.mark.parametrize(("successes", "trials", "tenths"), [(3, 10, 1), (0, 5, 2), (5, 5, 3), (40, 200, 1)])
def test_the_binomial_tail_is_the_sum_of_its_terms(successes: int, trials: int, tenths: int) -> None:
    p = Fraction(tenths, 10)
    exact = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))
    assert binomial_tail(successes, trials, float(p)) == pytest.approx(float(exact), rel=1e-9)


def test_p_values_are_adjusted_as_by_benjamini_and_hochberg() -> None:
    assert adjust([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjust([]) == []


def test_an_effect_is_the_mean_difference_from_the_controls() -> None:
    controls = np.array([[0.1, 0.2, 0.0], [0.0, 0.1, 0.2], [0.2, 0.0, 0.1], [0.1, 0.1, 0.1], [0.0, 0.2, 0.1]])
    found = measure_effect(np.array([0.6, 0.7, 0.5, 0.6, 0.6]), controls)
    assert found.mean == pytest.approx(0.5)
    assert found.low <= 0.5 <= found.high
    assert found.images == 5
    assert found.p == pytest.approx(4**-5, rel=0.9, abs=5e-4)  # the candidate is the largest in every row


def test_without_an_effect_p_values_are_as_small_as_by_chance() -> None:
    generator = np.random.default_rng(1)
    values = [measure_effect(drawn[:, 0], drawn[:, 1:]).p for drawn in generator.normal(size=(60, 12, 4))]
    assert np.mean(np.array(values) <= 0.1) <= 0.25
