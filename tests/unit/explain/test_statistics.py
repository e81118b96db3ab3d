"""Intervals and comparisons over images, on numbers whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quality.statistics import bootstrap, compare, spearman


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    interval = bootstrap(values, seed=0)
    error = 1.96 * values.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.002)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.002)


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    draws = np.random.default_rng(2).exponential(1.0, (300, 40))
    hits = sum(found.low <= 1.0 <= found.high for found in (bootstrap(row, seed=0, resamples=500) for row in draws))
    assert 0.86 <= hits / 300 <= 0.99


def test_equal_values_leave_no_doubt_and_one_value_leaves_all():
    assert (bootstrap([0.3] * 5, seed=0).low, bootstrap([0.3] * 5, seed=0).high) == pytest.approx((0.3, 0.3))
    assert bootstrap([0.3], seed=0).high == float("inf")


def test_the_seed_settles_the_interval():
    values = [0.1, 0.4, 0.9, 0.3]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3, resamples=50) != bootstrap(values, seed=4, resamples=50)


def test_pairing_sees_a_small_difference_that_images_hide():
    hard = np.random.default_rng(0).uniform(0, 1, 50)
    comparison = compare(hard + 0.02, hard, seed=0)
    assert comparison.difference.low > 0
    assert comparison.difference.mean == pytest.approx(0.02)
    assert (comparison.first_higher, comparison.second_higher, comparison.ties) == (50, 0, 0)
    assert bootstrap(hard + 0.02, seed=0).low < bootstrap(hard, seed=0).mean


def test_the_interval_of_no_difference_holds_zero():
    comparison = compare([0.1, 0.5, 0.9], [0.2, 0.5, 0.8], seed=0)
    assert comparison.difference.low <= 0 <= comparison.difference.high
    assert comparison.ties == 1


@pytest.mark.parametrize("values", [[], [float("nan")], [[0.1], [0.2]]])
def test_what_is_no_number_for_each_image_is_refused(values):
    with pytest.raises(ValueError, match="per image"):
        bootstrap(values, seed=0)


def test_comparisons_need_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        compare([0.1], [0.1, 0.2], seed=0)


def test_an_interval_formats_its_three_numbers_alike():
    assert f"{bootstrap([0.5, 0.5], seed=0):.2f}" == "0.50 [0.50, 0.50]"


def test_rank_correlation_of_known_orders():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486833)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_symmetric_bounded_and_blind_to_scale(pairs):
    first, second = np.array(pairs, dtype=float).T
    correlation = spearman(first, second)
    assert -1.0000001 <= correlation <= 1.0000001
    assert spearman(second, first) == pytest.approx(correlation)
    assert spearman(first**3, second * 7 + 2) == pytest.approx(correlation)
