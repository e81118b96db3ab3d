"""Score-CAM on networks whose features' effects are known."""

import pytest
import torch
from torch import nn

from sagittal.engine import Budget
from sagittal.explain import ScoreCAM
from sagittal.explain.attribution.score_cam import most_active, stretched
from sagittal.explain.events import Truncated


class OneOfTwoSpots(nn.Module):
    """Two feature maps, of which the class needs the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ReLU()

    def forward(self, inputs):
        first = self.features(inputs[:, :2] * 1.0).amax((2, 3))[:, :1]
        return torch.cat([first - 4, 4 - first], 1)


def two_spots():
    picture = torch.zeros(3, 8, 8)
    picture[0, 1, 2], picture[1, 6, 5] = 8.0, 8.0
    return picture


def test_only_the_feature_that_brings_the_class_back_is_shown(explained):
    run = explained(OneOfTwoSpots(), ScoreCAM(), two_spots())
    assert run.saliency.argmax() == 1 * 8 + 2
    assert float(run.saliency[1, 2]) > 0.9
    assert float(run.saliency[6, 5]) == 0.0


def test_it_asks_once_for_each_channel_that_shows_a_place(explained):
    run = explained(OneOfTwoSpots(), ScoreCAM(channels=1), two_spots())
    more = explained(OneOfTwoSpots(), ScoreCAM(channels=100), two_spots())
    assert more.usage.evaluations - run.usage.evaluations == 1


def test_a_budget_that_ends_it_leaves_what_is_known(explained):
    run = explained(OneOfTwoSpots(), ScoreCAM(), two_spots(), budget=Budget(evaluations=2))
    assert any(isinstance(event, Truncated) for event in run.events)
    assert float(run.saliency.max()) == 0.0


def test_constant_channels_are_left_out_and_others_stretched():
    channels = torch.stack([torch.full((2, 2), 3.0), torch.tensor([[1.0, 2.0], [3.0, 5.0]])])
    kept = most_active(channels, 2)
    assert len(kept) == 1
    assert stretched(kept).flatten().tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0])
