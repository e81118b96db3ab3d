"""The ordered region search, on models whose reasons and best order are known."""

import pytest
import torch
from known_models import LEFT, RIGHT, SIZE, Constant, LooksAtRegions, image

from sagittal.engine import Budget, Output
from sagittal.engine.requests import Subject
from sagittal.explain import InvalidParameter, OrderedRegionSearch
from sagittal.explain.events import Checkpoint, SaliencyMask, Truncated
from sagittal.explain.masks.region_search import PLACES, Ascent, ranks, regional_means, reordered, shaped
from sagittal.explain.problem import Problem
from sagittal.explain.superpixels import superpixels

SIDE = 16

SMALL = OrderedRegionSearch(mask_size=14, regions=16, iterations=4)


def halves(size: int = SIZE) -> torch.Tensor:
    """Returns an image of two colours with a vertical edge in the middle."""
    picture = torch.zeros(3, size, size)
    picture[0, :, : size // 2], picture[2, :, size // 2 :] = 1.0, 1.0
    return picture


def test_superpixels_cover_all_cells_without_gaps_and_follow_the_edge():
    labels = superpixels(halves(), 8, 14)
    assert labels.shape == (14, 14)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert not {*labels[:, :7].flatten().tolist()} & {*labels[:, 7:].flatten().tolist()}


@pytest.mark.parametrize("size", [(8, 8), (50, 30)])
def test_superpixels_of_small_flat_and_oblong_images_are_regions_too(size):
    labels = superpixels(torch.zeros(3, *size), 9, 14)
    assert labels.shape == (14, 14)
    assert labels.min() == 0


def test_it_shows_the_reason_and_nothing_of_a_model_without_one(explained):
    found = explained(LooksAtRegions(LEFT), SMALL, image(LEFT), target=1).saliency
    row, column = divmod(int(found.argmax()), 14)
    assert LEFT[0] <= row * 4 < LEFT[2]
    assert LEFT[1] <= column * 4 < LEFT[3]
    assert float(found.max()) > 0.5
    assert float(explained(Constant(), SMALL, image(LEFT), target=1).saliency.abs().max()) < 0.05


def test_evaluations_follow_from_its_settings(explained):
    run = explained(LooksAtRegions(LEFT), SMALL, image(LEFT), target=1)
    steps = (6 + 8) * SMALL.iterations
    assert run.usage.gradient_evaluations == steps
    assert run.usage.evaluations == steps + 2 * 2 * (len(PLACES) - 2)


def test_an_ascent_moves_the_cells_with_the_largest_gradients_up_and_resumes_from_its_state():
    gradient = torch.linspace(-1, 1, 16).view(4, 4)
    start = ranks(-gradient)
    ascent = Ascent(start, torch.arange(16).view(4, 4), {})
    assert torch.equal(ascent.order, start)
    for step in range(30):
        ascent.move(gradient, step / 100)
    again = Ascent(start, torch.arange(16).view(4, 4), ascent.state)
    for each in (ascent, again):
        for step in range(30, 100):
            each.move(gradient, step / 100)
        assert each.step == 100
        assert torch.equal(ranks(each.order), ranks(gradient))
    assert torch.equal(again.order, ascent.order)


def test_without_gradients_the_order_stays():
    start = ranks(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)))
    ascent = Ascent(start, torch.zeros(6, 6, dtype=torch.int64), {})
    ascent.move(torch.zeros(6, 6), 0.0)
    assert torch.equal(ascent.newest, start)


def test_a_region_moves_as_one_if_all_its_cells_have_one_gradient():
    labels = torch.tensor([[0, 0], [1, 2]])
    assert regional_means(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), labels).tolist() == [[2.0, 2.0], [5.0, 7.0]]


def test_a_forming_heatmap_has_the_values_of_the_prior_in_the_new_order():
    found = reordered(torch.tensor([[0.0, 0.1], [0.9, 0.5]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert found.tolist() == torch.tensor([[0.9, 0.1], [0.0, 0.5]]).tolist()


def test_the_search_improves_on_the_order_of_its_prior(explained, additive):
    weights = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / SIDE**2
    search = OrderedRegionSearch(mask_size=SIDE, regions=16, iterations=SMALL.iterations)
    run = explained(additive(weights), search, torch.ones(3, SIDE, SIDE), output=Output.PROBABILITIES)
    forming = [event.saliency for event in run.of(SaliencyMask) if not event.final]
    prior = forming[search.iterations - 1]
    assert float((ranks(run.saliency) * weights).sum()) > float((ranks(prior) * weights).sum())


def test_the_saliency_keeps_the_order_and_its_peak_is_the_largest_gap():
    order = torch.arange(64.0).view(8, 8)
    gaps = torch.tensor([-0.8, -0.2, 0.2, 0.6, 0.7, 0.4, 0.8, 0.8], dtype=torch.float64)
    found = shaped(order, gaps, 0.8)
    assert torch.equal(ranks(found), ranks(order))
    assert float(found.max()) == pytest.approx(1.0, abs=0.02)
    half = shaped(order, gaps / 2, 0.8)
    assert float(half.max()) == pytest.approx(0.5, abs=0.02)
    assert float(shaped(order, torch.zeros(8, dtype=torch.float64), 0.8).max()) == 0.0


@pytest.mark.parametrize("evaluations", [0, 10, 30, 60])
def test_a_spent_budget_leaves_the_best_so_far(explained, evaluations):
    run = explained(LooksAtRegions(LEFT), SMALL, image(LEFT), target=1, budget=Budget(evaluations=evaluations))
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.usage.evaluations <= evaluations
    assert [mask.final for mask in run.of(SaliencyMask)].count(True) == 1


def test_going_on_from_any_checkpoint_gives_the_same_result_without_repeating_work(explained):
    model, seen = LooksAtRegions(LEFT, RIGHT), image(LEFT, RIGHT)
    whole = explained(model, SMALL, seen, target=1)
    steps = whole.of(Checkpoint)
    assert len(steps) == 2 * SMALL.iterations + 1
    for left, step in list(enumerate(reversed(steps)))[:: len(steps) // 5]:
        resumed = explained(model, _Resumed(step.state), seen, target=1)
        torch.testing.assert_close(resumed.saliency, whole.saliency, atol=1e-5, rtol=0)
        assert len(resumed.of(Checkpoint)) == left


class _Resumed:
    """The search on a problem that was restored from a checkpoint."""

    def __init__(self, state):
        self._state = state

    def explain(self, problem):
        return SMALL.explain(
            Problem(
                subject=Subject(problem.image, problem.baseline, problem.target),
                unmasked_score=problem.unmasked_score,
                baseline_score=problem.baseline_score,
                seed=problem.seed,
                restored=self._state,
            )
        )


@pytest.mark.parametrize(("name", "value"), [("regions", 3), ("regions", 197), ("mask_size", 6), ("iterations", 0)])
def test_settings_out_of_bounds_are_refused(name, value):
    with pytest.raises(InvalidParameter) as failure:
        OrderedRegionSearch(**{name: value})
    assert failure.value.name == name
