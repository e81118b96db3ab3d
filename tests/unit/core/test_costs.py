"""Estimates: what a setting cost before, or a line through those that were seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.core.jobs import FURTHEST, MAX_SETTING, Cost, estimate, setting_of


def product(**numbers: float) -> tuple[str, Cost]:
    """A method that costs the product of its parameters, at 100 evaluations a second."""
    evaluations = 1.0
    for number in numbers.values():
        evaluations *= number
    return setting_of(numbers), Cost(evaluations, evaluations / 100)


def test_nothing_is_known_of_what_was_never_seen() -> None:
    assert estimate(setting_of({"points": 3}), {}) is None


def test_a_setting_that_was_seen_costs_what_it_cost() -> None:
    observed = dict([product(points=10, iterations=20), product(points=20, iterations=20)])
    assert estimate(setting_of({"iterations": 20, "points": 10}), observed) == Cost(200, 2.0)


def test_one_observation_is_the_estimate_of_all_others() -> None:
    found = estimate(setting_of({"points": 999}), dict([product(points=10)]))
    assert found is not None
    assert found.evaluations == pytest.approx(10)


def test_costs_that_are_products_are_extrapolated() -> None:
    seen = [product(points=points, iterations=iterations) for points in (10, 30) for iterations in (5, 20, 40)]
    found = estimate(setting_of({"points": 60, "iterations": 80}), dict(seen))
    assert found is not None
    assert found.evaluations == pytest.approx(4800, rel=0.2)
    assert found.seconds == pytest.approx(48, rel=0.2)


def test_what_is_no_number_is_part_of_the_setting_and_of_no_line() -> None:
    plain, other = setting_of({"mode": "a", "points": 3}), setting_of({"mode": "b", "points": 3})
    assert plain != other
    assert estimate(other, {plain: Cost(50, 1.0)}) == Cost(pytest.approx(50), pytest.approx(1.0))


def test_tensors_are_left_out_and_long_settings_cut() -> None:
    assert setting_of({"mask": b"bytes", "points": 3}) == '{"points":3}'
    cut = setting_of({f"parameter{number}": number for number in range(200)})
    assert len(cut) == MAX_SETTING
    assert estimate(cut, {setting_of({"points": 3}): Cost(9, 0.0)}) == Cost(pytest.approx(9), 0.0)


_NUMBERS = st.dictionaries(st.sampled_from("abc"), st.floats(-1e9, 1e9), min_size=1)


@given(st.lists(st.tuples(_NUMBERS, st.floats(0, 1e9)), min_size=1, max_size=32), _NUMBERS)
def test_an_estimate_is_a_number_within_reach_of_what_was_seen(seen: list[tuple[dict, float]], wanted: dict) -> None:
    observed = {setting_of(numbers): Cost(spent, 1.0) for numbers, spent in seen}
    found = estimate(setting_of(wanted), observed)
    assert found is not None
    assert 0 <= found.evaluations <= max(1.0, *(cost.evaluations for cost in observed.values())) * FURTHEST * 1.001
    assert found.seconds >= 0
