from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.engine import Budget
from sagittal.engine.requests import Evaluate, OutOfBudget, Scores
from sagittal.explain import InvalidParameter, MinimalSufficientExplanations
from sagittal.explain.events import CertificateLevel, Progress, SufficientSet, Truncated
from sagittal.imaging.patch_sets import bits_of, overlap

SUBSET_MINIMAL = (CertificateLevel.SUBSET_MINIMAL, CertificateLevel.MINIMUM_SIZE)


def test_the_smallest_set_of_an_additive_model_is_found(search, known):
    weights = [0.01] * 49
    for patch, weight in {3: 0.15, 17: 0.14, 30: 0.13, 44: 0.06}.items():
        weights[patch] = weight
    run = search(known.additive(weights), MinimalSufficientExplanations(threshold=0.45, max_overlap=0))
    assert (3, 17, 30) in run.sets
    assert min(map(len, run.sets)) == 3


def test_a_or_b_has_exactly_two_diverse_roots(search, known):
    run = search(known.any_of([0, 1], [8, 15, 22]), MinimalSufficientExplanations())
    assert set(run.sets) == run.diverse == {(0, 1), (8, 15, 22)}


def test_a_and_b_has_one_root(search, known):
    run = search(known.any_of([0, 1, 40, 41]), MinimalSufficientExplanations())
    assert set(run.sets) == run.diverse == {(0, 1, 40, 41)}
    assert run.sets[0, 1, 40, 41].certificate.level is CertificateLevel.SUBSET_MINIMAL


def test_every_set_is_necessary_where_there_is_one_way_only(search, known):
    run = search(known.any_of([5, 6]), MinimalSufficientExplanations())
    causal = run.sets[5, 6].causal
    assert causal.sufficiency == pytest.approx(0.9)
    assert causal.without < 0.1
    assert causal.top_without.index == 1


def test_no_set_is_evaluated_twice_but_in_full_precision(search, known):
    run = search(known.any_of([0, 1, 9], [25, 26]), MinimalSufficientExplanations())
    counts = Counter(run.model.evaluated)
    reported = {bits_of(patches) for patches in run.sets}
    assert {bits for bits, count in counts.items() if count > 1} <= reported | {2**49 - 1 - bits for bits in reported}
    assert max(counts.values()) <= 2


def test_a_typical_job_takes_several_hundred_evaluations(search, known):
    run = search(known.any_of([0, 1, 9, 17], [25, 26, 33, 34, 40]), MinimalSufficientExplanations())
    assert len(run.diverse) == 2
    assert run.usage.evaluations < 800


def test_the_overlap_that_is_allowed_is_used(search, known):
    score = known.any_of([0, 1, 2], [2, 3, 4])
    assert len(search(score, MinimalSufficientExplanations(max_overlap=0)).diverse) == 1
    assert search(score, MinimalSufficientExplanations(max_overlap=1)).diverse == {(0, 1, 2), (2, 3, 4)}


def test_a_patch_that_many_sets_share_hides_none_of_them(search, known):
    score = known.any_of([0, 10], [0, 20], [0, 30], [0, 40])
    diverse = search(score, MinimalSufficientExplanations(max_overlap=1)).diverse
    assert diverse == {(0, 10), (0, 20), (0, 30), (0, 40)}


def test_no_more_sets_than_asked_for_are_returned(search, known):
    run = search(known.any_of([0], [10], [20], [30]), MinimalSufficientExplanations(max_sets=2))
    assert len(run.sets) == 2


def test_the_top_class_may_be_what_is_kept(search):
    # Class 0 leads class 1 as soon as patch 4 is shown, at a score far below 0.9 of the full one.
    def score(shown):
        zero = 0.1 + 0.3 * shown[:, 4] + 0.05 * shown.sum(-1)
        return torch.stack([zero, torch.full_like(zero, 0.35), 0.65 - zero], -1)

    run = search(score, MinimalSufficientExplanations(grid=3, sufficiency="top-class"))
    assert (4,) in run.sets
    assert run.sets[4,].certificate.required_score == 0


def test_a_constant_model_needs_nothing_of_the_image(search):
    run = search(lambda shown: torch.full((len(shown),), 0.7), MinimalSufficientExplanations())
    assert run.warnings == ["EMPTY_SET_SUFFICIENT"]
    assert run.sets == {}


def test_a_target_that_is_not_on_top_has_no_set_that_keeps_it_there(search):
    run = search(lambda shown: 0.4 * shown.mean(-1), MinimalSufficientExplanations(sufficiency="top-class"))
    assert run.warnings == ["IMAGE_NOT_SUFFICIENT"]
    assert run.sets == {}


def test_a_model_that_needs_every_patch_gets_the_whole_image(search, known):
    run = search(known.any_of(range(9)), MinimalSufficientExplanations(grid=3))
    (found,) = run.sets.values()
    assert found.patches == tuple(range(9))
    assert found.certificate.level is CertificateLevel.ONE_MINIMAL


def test_a_search_that_stops_at_its_bound_says_so(search, known):
    pairs = [[2 * place, 2 * place + 1] for place in range(24)]
    run = search(known.any_of(*pairs), MinimalSufficientExplanations(max_sets=100))
    assert run.warnings == ["SEARCH_BOUND_REACHED"]
    assert len(run.sets) < len(pairs)


def test_a_search_that_found_all_there_is_says_nothing(search, known):
    assert not search(known.any_of([0, 1], [8, 15, 22]), MinimalSufficientExplanations()).warnings


def test_a_tiny_score_is_warned_of(search):
    run = search(lambda shown: 0.005 * shown[:, 0], MinimalSufficientExplanations(grid=3))
    assert "SUFFICIENCY_UNRELIABLE" in run.warnings


def test_a_grid_finer_than_the_image_is_refused(search, known):
    from sagittal.engine.requests import Subject
    from sagittal.explain.problem import Problem

    image = torch.ones(3, 8, 8)
    problem = Problem(subject=Subject(image, image, 0), unmasked_score=1.0, baseline_score=0.0)
    with pytest.raises(InvalidParameter, match="grid: is 9; give at most 8"):
        next(MinimalSufficientExplanations(grid=9).explain(problem))


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 0.0), ("threshold", 1.01), ("grid", 2), ("grid", 15), ("sufficiency", "most"), ("max_sets", 0)],
)
def test_parameters_out_of_bounds_are_refused(name, value):
    with pytest.raises(InvalidParameter) as refused:
        MinimalSufficientExplanations(**{name: value})
    assert refused.value.name == name


@pytest.mark.parametrize("budget", [1, 2, 30, 60, 90])
def test_a_small_budget_gives_the_best_so_far_marked_as_such(search, known, budget):
    run = search(known.any_of([0, 1, 2]), MinimalSufficientExplanations(), Budget(evaluations=budget))
    assert [event.limit for event in run.of(Truncated)] == ["evaluations"]
    assert run.usage.evaluations - run.usage.metric_evaluations <= budget
    for patches, found in run.sets.items():
        assert {0, 1, 2} <= set(patches)
        assert found.score >= found.certificate.required_score


def interrupted(steps, answer, at):
    """Runs a generator, throwing OutOfBudget at its search request number `at`; returns events and whether it came."""
    events, asked, resume = [], 0, lambda: next(steps)
    while True:
        try:
            item = resume()
        except StopIteration:
            return events, asked > at
        if not isinstance(item, Evaluate):
            events.append(item)
            resume = lambda: next(steps)  # noqa: E731
        elif item.metric or asked != at:
            asked += not item.metric
            resume = lambda item=item: steps.send(answer(item))  # noqa: E731
        else:
            asked += 1
            resume = lambda: steps.throw(OutOfBudget("deadline"))  # noqa: E731


def test_a_budget_may_end_at_any_request(known):
    from sagittal.engine.requests import Subject
    from sagittal.explain.problem import Problem

    score, image = known.any_of([0, 1], [7, 8]), torch.ones(3, 12, 12)
    problem = Problem(subject=Subject(image, 0 * image, 0), unmasked_score=0.9, baseline_score=0.02)

    def answer(request):
        target = score(request.masks.flatten(1))
        return Scores(target, torch.zeros(len(target), dtype=torch.long), target)

    at, came = 0, True
    while came:
        events, came = interrupted(MinimalSufficientExplanations(grid=3).explain(problem), answer, at)
        sets = [event for event in events if isinstance(event, SufficientSet)]
        assert bool([event for event in events if isinstance(event, Truncated)]) == came
        assert all(score(torch.tensor([[float(p in each.patches) for p in range(9)]])) > 0.8 for each in sets)
        assert sets or at == 0
        at += 1
    assert at > 5


def test_progress_only_goes_forward(search, known):
    run = search(known.any_of([0, 1, 9], [25, 26]), MinimalSufficientExplanations())
    fractions = [event.fraction for event in run.of(Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def random_tables():
    """Score tables on a 2x2 to 4x4 grid: noise, so nothing is monotone, or noise around a rising score."""

    def table(drawn):
        grid, seed, rising = drawn
        noise = torch.rand(2 ** (grid * grid), generator=torch.Generator().manual_seed(seed))
        sizes = torch.tensor([bits.bit_count() for bits in range(len(noise))]) / grid**2
        scores = (1 - rising) * noise + rising * sizes
        scores[0], scores[-1] = 0.05, 0.9
        return grid, scores.tolist()

    return st.tuples(st.integers(3, 4), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 0.8, 0.95])).map(table)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_tables(), st.sampled_from([0.5, 0.9, 1.0]), st.integers(0, 3))
def test_every_claim_is_true_by_exhaustive_enumeration(search, known, grid_and_table, threshold, allowed):
    grid, table = grid_and_table
    explainer = MinimalSufficientExplanations(grid=grid, threshold=threshold, max_overlap=allowed, max_sets=6)
    run = search(known.table(table), explainer)
    values = torch.tensor(table)
    sufficient = (values.double() >= threshold * run.problem.unmasked_score).tolist()
    assert run.sets
    for patches, found in run.sets.items():
        assert_true(bits_of(patches), found.certificate.level, sufficient)
        assert found.certificate.level is not CertificateLevel.SUFFICIENT
        assert found.certificate.level in SUBSET_MINIMAL or len(patches) > 8
        assert found.score == pytest.approx(table[bits_of(patches)])
        assert found.causal.without == pytest.approx(table[~bits_of(patches) & (2 ** (grid * grid) - 1)])
    assert_largest(run, allowed)


def assert_true(bits, level, sufficient):
    """Checks a claim against the table of all sets."""
    assert sufficient[bits]
    subsets = [each for each in range(bits) if each & ~bits == 0]
    assert not any(sufficient[each] for each in subsets if each.bit_count() == bits.bit_count() - 1)
    if level in SUBSET_MINIMAL:
        assert not any(sufficient[each] for each in subsets)
    if level is CertificateLevel.MINIMUM_SIZE:
        assert not any(holds for each, holds in enumerate(sufficient) if each.bit_count() < bits.bit_count())


def assert_largest(run, allowed):
    """Checks that the diverse sets are a largest family of the sets returned."""
    found = [bits_of(patches) for patches in run.sets]
    diverse = [bits_of(patches) for patches in run.diverse]
    assert all(overlap(one, other) <= allowed for one, other in combinations(diverse, 2))
    for family in combinations(found, len(diverse) + 1):
        assert any(overlap(one, other) > allowed for one, other in combinations(family, 2))
