"""Of the saliencies that were found, the one with the best curves is kept, at the scale at which they are best."""

import pytest
import torch

from sagittal.engine.requests import Scores, Subject
from sagittal.explain.masks.level_sets import chosen_scale, evaluations
from sagittal.explain.problem import Problem

SIDE = 28


def chosen(truth, *saliencies):
    """Answers as a model whose score is the share of the true cells that are shown."""
    image = torch.ones(3, SIDE, SIDE)
    problem = Problem(subject=Subject(image, 0 * image, 0), unmasked_score=1.0, baseline_score=0.0)
    steps = chosen_scale(problem, saliencies)
    request = next(steps)
    assert len(request.masks) == evaluations(len(saliencies))
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


def test_the_saliency_with_the_better_curves_is_kept():
    elsewhere = region().roll(-8, 0)
    assert torch.equal(chosen(region(), elsewhere, region()), region())
    assert torch.equal(chosen(region(), region(), elsewhere), region())
