"""The batch size and the quantum that are chosen follow from what was measured."""

import pytest
import torch
from torch import nn

from sagittal.engine.timing import Variant
from sagittal.models.measuring import (
    QUANTUM_ROWS,
    batch_sizes,
    find_quantum,
    find_throughput,
    pieces_of,
    runs_small_cheaply,
)

IMAGE = torch.zeros(1, 3, 4, 4)


def clock(per_image, fixed=0.0):
    """A machine on which a pass takes `fixed` seconds and `per_image(n)` for each of n images, twice with gradient."""

    def seconds(variant, inputs):
        return (2 if variant.gradient else 1) * (fixed + len(inputs) * per_image(len(inputs)))

    return seconds


def chosen(seconds, *, gradient=True, sizes=(4, 8, 16, 32), **options):
    return find_throughput(Variant(nn.Identity(), gradient=gradient), IMAGE, sizes, seconds=seconds, **options)


def test_the_smallest_of_equally_fast_batches_is_chosen():
    assert chosen(clock(lambda _: 0.001)).batch_size == 4


def test_a_fixed_cost_asks_for_the_largest_batch():
    found = chosen(clock(lambda _: 0.0001, fixed=0.01))
    assert found.batch_size == 32
    assert found.forward == pytest.approx(32 / 0.0132)
    assert found.backward == pytest.approx(32 / 0.0132)


def test_a_batch_that_falls_out_of_the_cache_is_not_chosen():
    assert chosen(clock(lambda n: 0.001 if n <= 8 else 0.002, fixed=0.01)).batch_size == 8


def test_sizes_that_take_too_long_are_not_tried():
    assert chosen(clock(lambda _: 1.0, fixed=100.0), patience=30.0).batch_size == 4


def test_a_model_without_gradients_is_measured_without():
    found = chosen(clock(lambda _: 0.001), gradient=False)
    assert found.backward == 0
    assert found.forward == pytest.approx(1000)


def test_out_of_memory_ends_the_search():
    def seconds(variant, inputs):
        if len(inputs) > 8:
            raise torch.cuda.OutOfMemoryError("by construction")
        return clock(lambda _: 0.0001, fixed=0.01)(variant, inputs)

    assert chosen(seconds).batch_size == 8


def test_sizes_are_multiples_of_the_quantum():
    for quantum in (1, 2, 4):
        assert all(size % quantum == 0 for size in batch_sizes(torch.device("cpu"), quantum))


class SumsByBatch(nn.Module):
    """Rounds otherwise in batches that are not whole multiples of a size, as kernels do."""

    def __init__(self, quantum):
        super().__init__()
        self.quantum = quantum

    def forward(self, inputs):
        off = 1e-3 if len(inputs) % self.quantum else 0.0
        return inputs.flatten(1)[:, :2] * (1 + off)


@pytest.mark.parametrize("quantum", [1, 2, 4])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_quantum_is_found_at_which_batches_do_not_matter(quantum, gradient):
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, 3, 4, 4, generator=generator)
    assert find_quantum(Variant(SumsByBatch(quantum), gradient=gradient), probe) == quantum


def test_a_model_for_which_no_quantum_helps_has_none():
    class DependsOnAll(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :2] + len(inputs)

    assert find_quantum(Variant(DependsOnAll(), gradient=False), torch.randn(4, 3, 4, 4)) == 1


@pytest.mark.parametrize("quantum", [1, 2, 4])
def test_pieces_are_multiples_that_sum_to_all_rows(quantum):
    sizes = pieces_of(quantum, QUANTUM_ROWS)
    assert sum(sizes) == QUANTUM_ROWS
    assert len(sizes) > 1
    assert all(size % quantum == 0 for size in sizes)


def test_a_small_batch_is_padded_only_where_that_costs_little():
    variant, image = Variant(nn.Identity()), torch.zeros(1, 3, 4, 4)
    assert runs_small_cheaply(variant, image, 4, seconds=clock(lambda _: 0.001))
    assert not runs_small_cheaply(variant, image, 4, seconds=clock(lambda _: 0.0001, fixed=0.01))
    assert not runs_small_cheaply(variant, image, 1, seconds=clock(lambda _: 0.001))
