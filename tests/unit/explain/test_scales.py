"""A finished saliency is kept at the scale at which its own curves are best."""

import pytest
import torch

from sagittal.explain.problem import Problem
from sagittal.explain.scales import EVALUATIONS, chosen_scale
from sagittal.explain.seam import Scores, Subject

SIDE = 28


def chosen(truth, saliency):
    """Answers as a model whose score is the share of the true cells that are shown."""
    image = torch.ones(3, SIDE, SIDE)
    problem = Problem(subject=Subject(image, 0 * image, 0), full_score=1.0, baseline_score=0.0)
    steps = chosen_scale(problem, saliency)
    request = next(steps)
    assert len(request.masks) == EVALUATIONS
    scores = (request.masks * truth).flatten(1).sum(1) / truth.sum()
    with pytest.raises(StopIteration) as end:
        steps.send(Scores(scores, torch.zeros(len(scores), dtype=torch.long), scores))
    return end.value.value


def region():
    truth = torch.zeros(SIDE, SIDE)
    truth[10:24, 10:24] = 1
    return truth


def checkered(truth):
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return truth * ((rows + columns) % 2)


def test_ragged_parts_of_a_region_are_closed():
    ragged = checkered(region()) * 0.8
    closed = chosen(region(), ragged)
    assert not torch.equal(closed, ragged)
    assert torch.allclose(closed.max(), ragged.max())
    assert float(closed[12:22, 12:22].min()) > 0.5


def test_cells_that_matter_alone_stay_apart():
    cells = checkered(region())
    assert torch.equal(chosen(cells, cells), cells)


def test_nothing_stays_nothing():
    empty = torch.zeros(SIDE, SIDE)
    assert torch.equal(chosen(region(), empty), empty)
