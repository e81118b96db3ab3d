"""The greedy region searches of the benchmark, on an additive model: the best order is that of the regions' weights."""

import pytest
import torch
from reference.region_search import GreedyRegions, Regions

from sagittal.engine import Output
from sagittal.explain.superpixels import superpixels

SIDE = 16


@pytest.mark.parametrize("window", [0, 3])
def test_regions_come_in_the_order_of_their_weights_and_windows_take_fewer_evaluations(explained, additive, window):
    weights = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / SIDE**2
    seen = torch.ones(3, SIDE, SIDE)
    run = explained(
        additive(weights), GreedyRegions(regions=9, mask_size=SIDE, window=window), seen, output=Output.PROBABILITIES
    )
    regions = Regions(superpixels(seen, 9, SIDE))
    sums = torch.bincount(regions.labels.flatten(), weights.flatten())
    expected = regions.spread(sums.argsort(descending=True))
    assert regions.count > 4
    assert torch.allclose(run.saliency, expected, atol=1e-6)
    every = regions.count * (regions.count + 1)
    assert run.usage.evaluations == every if window == 0 else run.usage.evaluations < every


def test_an_order_of_regions_is_spread_by_their_areas():
    regions = Regions(torch.tensor([[0, 0], [1, 2]]))
    assert regions.spread(torch.tensor([2, 0, 1])).tolist() == [[0.5, 0.5], [0.125, 0.875]]
    assert regions.masks(torch.tensor([[1.0, 0.5, 0.0]]))[0].tolist() == [[1.0, 1.0], [0.5, 0.0]]
