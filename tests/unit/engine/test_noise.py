"""A row's noise is a function of its seed and nothing else."""

import pytest
import torch

from sagittal.engine.composition import OFFSETS, NoiseTable

SHAPE = torch.Size((3, 16, 16))


def rows(*seeds, shape=SHAPE, table=None):
    return (table or NoiseTable(torch.device("cpu"))).rows(seeds, shape)


def test_a_seed_gives_the_same_alone_among_others_and_in_another_process():
    assert torch.equal(rows(1, 2, 3)[1], rows(2)[0])


def test_a_longer_table_does_not_change_what_a_seed_gave():
    table = NoiseTable(torch.device("cpu"))
    before = rows(5, table=table)
    rows(5, shape=torch.Size((3, 700, 700)), table=table)
    assert len(table._table) > 2 * OFFSETS
    assert torch.equal(rows(5, table=table), before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noise_that_is_added_is_that_of_the_seeds(layout):
    table = NoiseTable(torch.device("cpu"))
    inputs = torch.randn(3, *SHAPE).contiguous(memory_format=layout)
    expected = inputs + 0.5 * rows(4, 5, 9, table=table)
    table.add(inputs, (4, 5, 9), 0.5)
    torch.testing.assert_close(inputs, expected, atol=1e-6, rtol=0)


def test_noise_is_standard_normal():
    noise = rows(*range(64)).flatten()
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.005)


def test_rows_of_neighbouring_seeds_are_uncorrelated():
    noise = rows(*range(48)).flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(48)
    assert float(correlation.abs().max()) < 0.2, "five standard deviations of a chance correlation are 0.18"


def test_any_integer_is_a_seed():
    assert torch.isfinite(rows(0, 2**63 - 1, 2**63, 2**70)).all()
