"""The ordered region search, on models whose reasons and on additive models whose best order are known."""

import pytest
import torch
from known_models import LEFT, RIGHT, SIZE, Constant, LooksAtRegions, image

from sagittal.engine import Budget
from sagittal.engine.requests import Subject
from sagittal.explain import InvalidParameter, OrderedRegionSearch
from sagittal.explain.events import Checkpoint, SaliencyMask, Truncated
from sagittal.explain.masks.region_search import BLENDS, PLACES, WALKS, Regions, Walk, ranks, regression, shaped
from sagittal.explain.masks.superpixels import superpixels
from sagittal.explain.problem import Problem

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
    count = int(superpixels(image(LEFT), 16, 14).max()) + 1
    walks = sum(Walk(count, shares, {}).length for shares in WALKS)
    choice = 2 * len(BLENDS) * (len(PLACES) - 2)
    assert run.usage.evaluations == 6 * SMALL.iterations + 2 * walks + choice
    assert run.usage.gradient_evaluations == 6 * SMALL.iterations + 2 * walks


def test_a_walk_puts_the_largest_effect_first_and_the_smallest_last():
    walk = Walk(4, (0.2, 0.8), {})
    assert walk.shown.tolist() == pytest.approx([0.2] * 4)
    effects = torch.tensor([0.0, 3.0, -1.0, 2.0])
    walk.place(effects, torch.tensor([0.1, 0.9]))
    assert walk.shown.tolist() == pytest.approx([0.8, 1.0, 0.8, 0.8])
    walk.place(effects, torch.tensor([0.5, 0.2]))
    assert walk.shown.tolist() == pytest.approx([0.2, 1.0, 0.0, 0.2])
    assert walk.order.tolist() == [1, 3, 0, 2]
    again = Walk(4, (0.2, 0.8), walk.state)
    assert (again.step, again.order.tolist()) == (2, [1, 3, 0, 2])
    assert [float(score) for _, score in again.observations] == pytest.approx([0.1, 0.9, 0.5, 0.2])


def test_the_regression_finds_the_effects_of_an_additive_model():
    effects = torch.tensor([2.0, -1.0, 0.0, 1.0])
    shown = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    found = regression(shown, torch.sigmoid(shown @ effects - 1))
    assert torch.allclose(found.float(), effects, atol=0.2)


def test_an_order_of_regions_is_spread_by_their_areas():
    regions = Regions(torch.tensor([[0, 0], [1, 2]]))
    assert regions.spread(torch.tensor([2, 0, 1])).tolist() == [[0.5, 0.5], [0.125, 0.875]]
    assert regions.masks(torch.tensor([[1.0, 0.5, 0.0]]))[0].tolist() == [[1.0, 1.0], [0.5, 0.0]]
    assert regions.sums(torch.ones(1, 2, 2)).tolist() == [[2.0, 1.0, 1.0]]


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
    assert len(steps) > SMALL.iterations + 10
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
