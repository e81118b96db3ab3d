"""Frozen layers compute what torch's own do, and their gradients."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sagittal.engine.cpu.kernels import (
    WHOLE_COLUMNS,
    Back,
    Clamp,
    FrozenChain,
    FrozenConvolution,
    Spread,
    SteadyLinear,
    Turned,
    back_of,
    freezable,
)

GEOMETRIES = [
    (kernel, stride, padding, dilation)
    for kernel, stride, padding, dilation in itertools.product((1, 3, 4), (1, 2, 3), (0, 1, 3), (1, 2))
    if dilation * (kernel - 1) < 9 + 2 * padding
]


def convolution(*geometry, channels=(3, 6), groups=1, bias=True):
    torch.manual_seed(0)
    return nn.Conv2d(*channels, *geometry, groups, bias=bias).requires_grad_(False)


def with_gradient(layer, images, along):
    leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = layer(leaf)
    return outputs.detach(), torch.autograd.grad(outputs, leaf, along(outputs.shape))[0]


def assert_same(layer, reference, images):
    noise = torch.Generator().manual_seed(1)
    along = torch.randn(reference(images).shape, generator=noise)
    for mine, theirs in zip(
        with_gradient(layer, images, lambda _: along.clone()),
        with_gradient(reference, images, lambda _: along.clone()),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(images), reference(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [(3, 6), (6, 3), (18, 18)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_frozen_convolution_is_the_convolution_whatever_its_geometry(groups, channels, layout):
    for geometry, side in itertools.product(GEOMETRIES, (9, 12)):
        plain = convolution(*geometry, channels=channels, groups=groups)
        images = torch.randn(2, channels[0], side, side).contiguous(memory_format=layout)
        assert_same(FrozenConvolution(plain), plain, images)


@pytest.mark.parametrize(
    ("geometry", "channels", "way"),
    [
        ((3, 1, 1, 1), (18, 18), Turned),
        ((3, 1, 3, 1), (18, 18), Back),
        ((3, 2, 1, 1), (3, 18), Spread),
        ((3, 2, 1, 1), (18, 18), Back),
        ((3, 2, 1, 2), (3, 18), Back),
        (((3, 3), (2, 1), 1, 1), (3, 18), Back),
    ],
)
def test_the_way_back_follows_from_the_geometry(geometry, channels, way):
    frozen = FrozenConvolution(convolution(*geometry, channels=channels))
    assert type(back_of(frozen.weight, frozen.geometry)) is way


@pytest.mark.parametrize("clamp", [Clamp(0.0), Clamp(0.0, 0.5), Clamp(-0.2, 0.3)])
def test_its_clamp_is_applied_both_ways(clamp):
    plain, images = convolution(3, 1, 1, 1), torch.randn(2, 3, 9, 9)
    frozen = FrozenConvolution(plain, clamp)
    assert_same(frozen, lambda images: plain(images).clamp(clamp.lowest, clamp.highest), images)


def test_a_chain_is_its_convolutions_in_turn_and_leaves_the_gradient_that_it_is_given_as_it_is():
    first, second, third = convolution(3, 2, 1), convolution(1, 1, channels=(6, 6)), convolution(3, channels=(6, 4))
    clamps = Clamp(0.0), None, Clamp(-0.5, 0.5)
    plain = nn.Sequential(first, nn.ReLU(), second, third, nn.Hardtanh(-0.5, 0.5))
    layers = [FrozenConvolution(layer, clamp) for layer, clamp in zip((first, second, third), clamps, strict=True)]
    chain, images = FrozenChain(layers), torch.randn(2, 3, 13, 13)
    assert_same(chain, plain, images)
    along = torch.randn(plain(images).shape)
    given = along.clone()
    with_gradient(chain, images, lambda _: given)
    assert torch.equal(given, along)


@pytest.mark.parametrize("clamp", [None, Clamp(0.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_added_is_added_before_the_clamp_and_gets_its_gradient(clamp, layout):
    first, last = convolution(1, 1, 0, 1, channels=(3, 5)), convolution(3, 1, 1, 1, channels=(5, 6))
    chain = FrozenChain([FrozenConvolution(first, Clamp(0.0)), FrozenConvolution(last, clamp, adds=True)])
    images, other = torch.randn(2, 3, 9, 9), torch.randn(2, 6, 9, 9)
    given = [each.contiguous(memory_format=layout).requires_grad_() for each in (images, other)]
    plain = last(first(given[0]).relu()) + given[1]
    plain = plain if clamp is None else plain.relu()
    along = torch.randn(plain.shape)
    for mine, theirs in zip(
        torch.autograd.grad(chain(*given), given, along), torch.autograd.grad(plain, given, along), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(chain(*given), plain, atol=1e-5, rtol=1e-4)


def test_other_sizes_than_that_of_the_first_call_are_taken():
    plain = convolution(3, 2, 1, 1)
    frozen = FrozenConvolution(plain)
    for rows, side in ((4, 16), (1, 16), (3, 23)):
        assert_same(frozen, plain, torch.randn(rows, 3, side, side))


def test_a_convolution_that_was_run_can_be_copied_and_counts_its_weights():
    frozen, images = FrozenConvolution(convolution(3, 1, 1, 1)), torch.randn(2, 3, 9, 9)
    assert frozen.laid_out_bytes == 0
    expected, _ = with_gradient(frozen, images, torch.ones)
    assert frozen.laid_out_bytes == 2 * frozen.weight.nbytes, "forward and back"
    copied = copy.deepcopy(frozen)
    assert copied.laid_out_bytes == 0
    assert torch.equal(copied(images), expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 3),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3).double(),
        None,
    ],
)
def test_what_the_kernels_do_not_know_is_not_frozen(module):
    assert freezable(module) is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_steady_linear_layer_is_the_layer_whatever_the_number_of_rows(bias):
    torch.manual_seed(0)
    linear = nn.Linear(320, 100, bias=bias).requires_grad_(False)
    steady, rows = SteadyLinear(linear), torch.randn(2 * WHOLE_COLUMNS + 1, 320)
    assert_same(steady, linear, torch.randn(2, 5, 320))
    for count in range(1, len(rows) + 1):
        assert_same(steady, linear, rows[:count])


def test_products_of_a_steady_linear_layer_have_whole_columns_only():
    steady, seen = SteadyLinear(nn.Linear(32, 10).requires_grad_(False)), []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "mm" in str(func):
                seen.append(args[-1].shape[1])
            return func(*args, **(kwargs or {}))

    with Products():
        for rows in (1, WHOLE_COLUMNS, WHOLE_COLUMNS + 1):
            with_gradient(steady, torch.randn(rows, 32), torch.ones)
    assert len(seen) == 6, "forward and back"
    assert all(columns % WHOLE_COLUMNS == 0 for columns in seen)


def test_a_linear_layer_that_was_run_can_be_copied_and_counts_its_weights():
    steady, rows = SteadyLinear(nn.Linear(32, 10).requires_grad_(False)), torch.randn(4, 32)
    assert steady.laid_out_bytes == 0
    expected, _ = with_gradient(steady, rows, torch.ones)
    assert steady.laid_out_bytes == steady.weight.nbytes
    copied = copy.deepcopy(steady)
    assert copied.laid_out_bytes == 0
    assert torch.equal(copied(rows), expected)
