"""The greedy region searches of the benchmark, on an additive model: the best order is that of the regions' weights."""

import pytest
import torch
from reference.region_search import GreedyRegions

from sagittal.engine import Output
from sagittal.explain.masks.region_search import Regions
from sagittal.explain.masks.superpixels import superpixels

SIDE = 16


@pytest.mark.parametrize("window", [0, 3])
def test_regions_come_in_the_order_of_their_weights_and_windows_take_fewer_evaluations(explained, additive, window):
    weights = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / SIDE**2
    seen = torch.ones(3, SIDE, SIDE)
    run = explained(
        additive(weights), GreedyRegions(regions=9, mask_size=SIDE, window=window), seen, output=Output.PROBABILITIES
    )
    regions = Regions(superpixels(seen, 9, SIDE))
    sums = regions.sums(weights.unsqueeze(0))[0]
    expected = regions.spread(sums.argsort(descending=True))
    assert regions.count > 4
    assert torch.allclose(run.saliency, expected, atol=1e-6)
    every = regions.count * (regions.count + 1)
    assert run.usage.evaluations == every if window == 0 else run.usage.evaluations < every
