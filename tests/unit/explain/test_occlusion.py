"""Occlusion on models where the fall of the score is known."""

import pytest
import torch
from known_models import LEFT, Constant, LooksAtRegions, image

from sagittal.engine import Budget, Output
from sagittal.explain import InvalidParameter, Occlusion
from sagittal.explain.attribution.occlusion import windows
from sagittal.explain.events import SaliencyMask, Truncated

WEIGHTS = torch.tensor([[0.1, 0.0, 0.2, 0.0], [0.0, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1], [0.05, 0.0, 0.0, 0.05]])


def test_a_window_of_one_cell_gives_the_shares_of_an_additive_model(explained, additive):
    run = explained(additive(WEIGHTS), Occlusion(grid=4, window=1), torch.ones(3, 4, 4), output=Output.PROBABILITIES)
    assert torch.allclose(run.saliency, WEIGHTS / WEIGHTS.sum(), atol=1e-6)
    assert run.usage.evaluations == 16


def test_a_larger_window_gives_the_mean_over_the_windows_that_cover_a_cell(explained, additive):
    run = explained(additive(WEIGHTS), Occlusion(grid=4, window=3), torch.ones(3, 4, 4), output=Output.PROBABILITIES)
    falls = {
        (row, column): float(WEIGHTS[row : row + 3, column : column + 3].sum()) for row in (0, 1) for column in (0, 1)
    }
    total = float(WEIGHTS.sum())
    assert float(run.saliency[0, 0]) == pytest.approx(falls[0, 0] / total)
    assert float(run.saliency[0, 1]) == pytest.approx((falls[0, 0] + falls[0, 1]) / 2 / total)
    assert float(run.saliency[1, 1]) == pytest.approx(sum(falls.values()) / 4 / total)


def test_windows_are_every_place_inside_the_grid():
    hidden = windows(5, 2, torch.device("cpu"))
    assert hidden.shape == (16, 5, 5)
    assert bool((hidden.sum((1, 2)) == 4).all())
    assert len(hidden.flatten(1).unique(dim=0)) == 16


def test_hiding_what_speaks_against_the_class_is_not_salient(explained, additive):
    weights = torch.tensor([[0.8, -0.3], [0.0, 0.2]])
    run = explained(additive(weights), Occlusion(grid=2, window=1), torch.ones(3, 2, 2), output=Output.PROBABILITIES)
    assert float(run.saliency[0, 1]) == 0.0
    assert float(run.saliency.max()) == 1.0


def test_a_constant_model_gives_nothing(explained):
    run = explained(Constant(), Occlusion(), image(LEFT), target=1)
    assert float(run.saliency.abs().max()) < 1e-6


def test_it_points_at_the_region(explained):
    run = explained(LooksAtRegions(LEFT), Occlusion(grid=14, window=3), image(LEFT), target=1)
    row, column = divmod(int(run.saliency.argmax()), 14)
    assert LEFT[0] <= row * 4 < LEFT[2]
    assert LEFT[1] <= column * 4 < LEFT[3]


@pytest.mark.parametrize("evaluations", [0, 64, 100])
def test_a_budget_gives_what_was_seen_so_far(explained, evaluations):
    run = explained(LooksAtRegions(LEFT), Occlusion(), image(LEFT), target=1, budget=Budget(evaluations=evaluations))
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.usage.evaluations <= evaluations
    assert [mask.final for mask in run.of(SaliencyMask)][-1]


def test_a_window_larger_than_the_grid_is_refused():
    with pytest.raises(InvalidParameter, match="at most grid") as failure:
        Occlusion(grid=4, window=5)
    assert failure.value.name == "window"
