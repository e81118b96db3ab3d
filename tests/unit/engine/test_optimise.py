"""Optimised models say what they said before."""

import functools
import math

import pytest
import torch
from torch import nn

from sagittal.engine import optimise as optimisation
from sagittal.engine import timing
from sagittal.engine.cpu import cpu_changes
from sagittal.engine.cpu.kernels import FrozenChain, FrozenConvolution

optimise = functools.partial(optimisation.optimise, speedup=lambda *_: 2.0)
"""Takes every step for faster, so that no test hangs on the machine's mood."""


def probabilities(outputs):
    return outputs.softmax(-1)


class Padded(nn.Module):
    """Pads apart from the convolution and calls it as a function, as some published models do."""

    def __init__(self, padding):
        super().__init__()
        self.pad = nn.ZeroPad2d(padding)
        self.convolution = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs):
        hidden = nn.functional.conv2d(self.pad(inputs), self.convolution.weight, None, 2)
        return self.head(self.norm(hidden).relu().mean((-2, -1)))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, inputs):
        means = inputs.mean((-2, -1))
        return self.head(means if float(means.sum()) > -1e9 else -means)


def prepared(module):
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return module.eval().requires_grad_(False)


def applied(steps):
    return {step.name for step in steps if step.applied}


def of_inputs(module, probe):
    inputs = probe.clone().requires_grad_()
    return torch.autograd.grad(probabilities(module(inputs))[:, 0].sum(), inputs)[0]


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 1)])
def test_functional_convolutions_take_in_their_norms_padding_and_activations(padding):
    module, probe = prepared(Padded(padding)), torch.randn(4, 3, 17, 17)
    faster, channels_last, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-6, rtol=1e-4)
    graph = {"modular-layers", "fold-batch-norm", "merge-padding", "fuse-activations", "freeze-convolutions"}
    assert graph | {"steady-linear-layers"} <= applied(steps)
    assert channels_last
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in faster.modules())


class Clamped(nn.Module):
    """Clamps one convolution's output, and another's that is used elsewhere too."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, groups=3, dilation=2), nn.Conv2d(6, 6, 1, stride=2, bias=False)
        self.activation, self.head = activation, nn.Linear(6, 5)

    def forward(self, inputs):
        hidden = self.second(self.activation(self.first(9 * inputs)))
        return self.head((self.activation(hidden) + hidden).mean((-2, -1)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 2.0), torch.relu])
def test_a_clamp_is_fused_with_the_convolution_before_it_where_nothing_else_sees_that(activation):
    module, probe = prepared(Clamped(activation)), torch.randn(4, 3, 15, 15)
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-6, rtol=1e-4)
    assert next(step.detail for step in steps if step.name == "fuse-activations").startswith("1 activations fused")


class Shared(nn.Module):
    """Clamped convolutions: the first one's output has two users, the second's one that is a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(3, 5)

    def forward(self, inputs):
        shared = self.first(inputs).relu()
        return self.head((shared + self.third(self.second(shared).relu()).relu()).mean((-2, -1)))


def test_convolutions_are_joined_where_nothing_else_sees_what_is_between_them():
    module, probe = prepared(Shared()), torch.randn(4, 3, 9, 9)
    faster, _, _ = optimise(module, probe, probabilities)
    chains = {name: len(layer.layers) for name, layer in faster.named_modules() if isinstance(layer, FrozenChain)}
    assert chains == {"third": 2}
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-6, rtol=1e-4)


class Residual(nn.Module):
    """Adds to convolutions what went round them: images, another convolution, one number for each channel."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.third, self.around = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(3, 6, 3, 2)
        self.last, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, inputs):
        hidden = self.second(self.first(inputs).relu())
        hidden += inputs
        hidden = (self.third(hidden.relu()) + self.around(hidden)).relu()
        return self.head((hidden + self.last(hidden) + 1).mean((-2, -1)))


def test_additions_are_fused_with_a_convolution_before_them():
    module, probe = prepared(Residual()), torch.randn(4, 3, 15, 15)
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-6, rtol=1e-4)
    assert next(step.detail for step in steps if step.name == "fuse-additions").startswith("3 additions fused")
    adding = [layer for layer in faster.modules() if isinstance(layer, FrozenConvolution) and layer.adds]
    assert [layer.clamp is not None for layer in adding] == [False, True, False]


class Broadcast(nn.Module):
    """Adds one number for each channel to a convolution."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, inputs):
        hidden = self.convolution(inputs)
        return self.head((hidden + inputs.mean((-3, -2, -1), keepdim=True)).mean((-2, -1)))


def test_what_has_another_shape_is_added_as_it_was():
    module, probe = prepared(Broadcast()), torch.randn(4, 3, 15, 15)
    faster, _, _ = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-6, rtol=1e-4)


class NormWithActivation(nn.BatchNorm2d):
    """Looks at its input's shape, normalises by a function and activates, as timm's does."""

    def forward(self, inputs):
        torch._assert(inputs.ndim == 4, "expected 4 dimensions")
        normed = nn.functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return normed.relu()


class Prepared(nn.Module):
    """Normalises its input too, which no convolution makes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = NormWithActivation(3), NormWithActivation(6, eps=0.1)
        self.convolution, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, inputs):
        return self.head(self.second(self.convolution(self.first(inputs))).mean((-2, -1)))


def test_functional_batch_norms_fold_into_the_convolutions_before_them():
    module, probe = prepared(Prepared()), torch.randn(4, 3, 9, 9)
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    details = {step.name: step.detail for step in steps}
    assert details["modular-layers"] == "1 functional batch norms became modules"
    assert details["fold-batch-norm"].startswith("1 batch norms folded")


def test_every_batch_norm_of_a_model_of_timm_is_folded():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module, probe = prepared(timm.create_model("test_efficientnet", num_classes=5)), torch.randn(2, 3, 32, 32)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(probabilities(faster(probe)), probabilities(module(probe)), atol=1e-4, rtol=0)
    assert any(step.detail.startswith(f"{len(norms)} batch norms folded") for step in steps)


def test_a_batch_norm_that_still_learns_its_statistics_is_left_alone():
    module, probe = prepared(Prepared()), torch.randn(4, 3, 9, 9)
    module.second.train()
    _, _, steps = optimise(module, probe, probabilities)
    assert next(step.detail for step in steps if step.name == "modular-layers").startswith("no functional")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_models_keep_their_probabilities(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    module, probe = prepared(models.get_model(name, weights=None, num_classes=10)), torch.randn(2, 3, 64, 64)
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(probabilities(faster(probe)), probabilities(module(probe)), atol=1e-4, rtol=0)
    torch.testing.assert_close(of_inputs(faster, probe), of_inputs(module, probe), atol=1e-4, rtol=1e-3)
    assert "fold-batch-norm" in applied(steps)


def test_a_model_that_cannot_be_traced_runs_untouched_and_says_why():
    module, probe = prepared(Untraceable()), torch.randn(2, 3, 8, 8)
    faster, channels_last, steps = optimise(module, probe, probabilities)
    assert faster is module
    assert not channels_last
    assert not applied(steps)
    assert all(step.detail for step in steps)


def test_a_step_that_changes_the_model_is_left_out(monkeypatch):
    def spoil(module):
        class Spoiled(nn.Module):
            def forward(self, inputs):
                return module(inputs) * torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0])

        return Spoiled(), "spoiled"

    monkeypatch.setitem(optimisation.CHANGES, "fold-batch-norm", spoil)
    module, probe = prepared(Padded((1, 1, 1, 1))), torch.randn(4, 3, 17, 17)
    faster, _, steps = optimise(module, probe, probabilities)
    torch.testing.assert_close(faster(probe), module(probe), atol=1e-5, rtol=1e-5)
    assert "changes a probability" in next(step.detail for step in steps if step.name == "fold-batch-norm")


def test_what_only_cpus_need_is_off_on_other_devices():
    assert set(cpu_changes(torch.device("cpu"))) == {
        "fuse-activations",
        "fuse-additions",
        "freeze-convolutions",
        "steady-linear-layers",
    }
    assert not cpu_changes(torch.device("cuda"))
    assert not set(optimisation.CHANGES) & set(cpu_changes(torch.device("cpu")))


def test_a_model_is_changed_by_what_its_device_needs(monkeypatch):
    asked = []
    monkeypatch.setattr(optimisation, "cpu_changes", lambda device: asked.append(device) or {})
    module, probe = prepared(Padded((1, 1, 1, 1))), torch.randn(4, 3, 17, 17)
    faster, channels_last, steps = optimise(module, probe, probabilities)
    assert asked == [probe.device]
    assert applied(steps) == {"modular-layers", "fold-batch-norm", "merge-padding", "channels-last"}
    assert {type(layer) for layer in faster.modules() if layer is not faster} == {nn.Conv2d, nn.Linear}
    assert channels_last


def test_the_original_is_not_changed():
    module, probe = prepared(Padded((1, 1, 1, 1))), torch.randn(4, 3, 17, 17)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimise(module, probe, probabilities)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_steps_that_make_the_model_slower_are_left_out_with_the_figure():
    module, probe = prepared(Padded((1, 1, 1, 1))), torch.randn(4, 3, 17, 17)
    chosen, channels_last, steps = optimisation.optimise(module, probe, probabilities, speedup=lambda *_: 0.5)
    assert chosen is module
    assert not channels_last
    assert not applied(steps)
    assert sum("0.50x as fast" in step.detail for step in steps) == 2, "the graph and the layout are timed"


def test_channels_last_has_to_gain_something():
    factors = iter([1.5, 1.0])
    module, probe = prepared(Padded((1, 1, 1, 1))), torch.randn(4, 3, 17, 17)
    _, channels_last, steps = optimisation.optimise(module, probe, probabilities, speedup=lambda *_: next(factors))
    assert not channels_last
    assert "fold-batch-norm" in applied(steps)


def test_the_speedup_is_that_of_the_fastest_runs(monkeypatch):
    before, after = (timing.Variant(prepared(Padded((1, 1, 1, 1)))) for _ in range(2))
    seconds = {before: iter([9.0, 6.0, 7.0, 8.0, 9.0]), after: iter([3.0, 5.0, 2.0, 9.0, 9.0])}
    monkeypatch.setattr(timing, "computing_seconds", lambda variant, _: next(seconds[variant]))
    monkeypatch.setattr(timing, "PATIENCE", math.inf)
    assert timing.measure_speedup(before, after, torch.randn(2, 3, 17, 17)) == 3.0


@pytest.mark.parametrize("gradient", [False, True])
def test_both_variants_are_run_alike_and_with_a_gradient_if_explanations_use_one(gradient):
    modes = {}
    variants = [timing.Variant(prepared(Padded((1, 1, 1, 1))), gradient=gradient) for _ in range(2)]
    for variant in variants:
        noted = modes[variant] = []
        variant.module.register_forward_hook(lambda *_, noted=noted: noted.append(torch.is_grad_enabled()))
    timing.measure_speedup(*variants, torch.randn(2, 3, 17, 17))
    assert modes[variants[0]] == modes[variants[1]]
    assert set(modes[variants[0]]) == ({False, True} if gradient else {False})
