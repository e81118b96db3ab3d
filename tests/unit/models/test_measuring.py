"""The batch size that is chosen follows from what was measured."""

import pytest
import torch
from torch import nn

from sagittal.engine.timing import Variant
from sagittal.models.measuring import batch_sizes, find_throughput, runs_small_cheaply
from sagittal.models.row_equality import QUANTA

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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sizes_are_multiples_of_every_quantum(device):
    assert all(size % quantum == 0 for size in batch_sizes(torch.device(device)) for quantum in QUANTA)


def test_a_small_batch_is_padded_only_where_that_costs_little():
    variant, image = Variant(nn.Identity()), torch.zeros(1, 3, 4, 4)
    assert runs_small_cheaply(variant, image, 4, seconds=clock(lambda _: 0.001))
    assert not runs_small_cheaply(variant, image, 4, seconds=clock(lambda _: 0.0001, fixed=0.01))
    assert not runs_small_cheaply(variant, image, 1, seconds=clock(lambda _: 0.001))
