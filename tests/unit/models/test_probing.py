"""What is found of a model by trying it is true, and what was registered against the truth is refused."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from sagittal.core.models import ModelEntry, Preprocessing
from sagittal.engine import Engine, Task
from sagittal.engine.cpu.kernels import FrozenConvolution
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.explain.events import SaliencyMask
from sagittal.imaging.fitting import fit_to_input
from sagittal.models.checking import check_preprocessing, weights_digest
from sagittal.models.evaluators import choose_place, resolve_preset
from sagittal.models.loading import load
from sagittal.models.preprocessing import black, to_input, to_rgb
from sagittal.models.probing import LiveBytes
from sagittal.models.sources import ModelUnavailable
from sagittal.worker.hosting.description import describe_model

CPU = torch.device("cpu")


class Small(nn.Module):
    """A convolutional network of three classes that does what its flaw says."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(4, 3)
        self.flaw = flaw

    def forward(self, images):
        if self.flaw == "channels last":
            images = images.permute(0, 3, 1, 2)
        if self.flaw == "one size" and images.shape[-1] != 64:
            raise ValueError("this network was exported for 64 pixels")
        outputs = self.head(self.flat(self.pool(self.features(images))))
        return FLAWS.get(self.flaw, lambda same: same)(outputs)


FLAWS = {
    "softmax": lambda outputs: outputs.softmax(-1),
    "sigmoid": lambda outputs: outputs.sigmoid(),
    "mixes": lambda outputs: outputs + 5 * outputs.mean(0, keepdim=True) * torch.arange(3),
    "random": lambda outputs: outputs + 1e-5 * torch.rand_like(outputs),
    "constant": lambda outputs: outputs * 0,
    "nan": lambda outputs: outputs * float("nan"),
}


class Patches(nn.Module):
    """A transformer of 16 patches and a class token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.block(tokens)[:, 0])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make(monkeypatch):
    """Loads Small, or another network, as it was registered."""
    module = types.ModuleType("small_networks")
    module.Small, module.Patches = Small, Patches
    monkeypatch.setitem(sys.modules, "small_networks", module)

    def loaded(flaw="", *, network="Small", size=32, **fields):
        arguments = {"flaw": flaw} if network == "Small" else {}
        preprocessing = {"input_size": size, "fit": "squash"} | fields.pop("preprocessing", {})
        source = {"kind": "python", "factory": f"small_networks:{network}", "arguments": arguments}
        entry = ModelEntry(name="small", source=source, preprocessing=preprocessing, **fields)
        return load(entry, CPU, batch_size=8)

    return loaded


def checks(loaded):
    return {check.name: check.passed for check in loaded.found.checks}


def test_a_sound_model_passes_every_check_and_shows_them(make):
    loaded = make()
    assert all(checks(loaded).values()), loaded.found.checks
    described = describe_model(loaded)
    assert {check.name for check in described.checks} == set(checks(loaded))
    assert described.capabilities.deterministic
    assert described.capabilities.weights_bytes == loaded.memory_bytes
    assert described.capabilities.activation_bytes > 8 * 3 * 32 * 32 * 4, "at least the batch itself"
    assert described.capabilities.weights_digest == weights_digest(Small())


@pytest.mark.parametrize(
    ("flaw", "output", "said"),
    [
        ("mixes", "logits", "batch-agrees.*neighbours"),
        ("nan", "logits", "outputs-finite"),
        ("", "probabilities", 'scores.*output = "logits"'),
        ("", "multi-label-probabilities", "scores.*multi-label-logits"),
    ],
)
def test_a_model_whose_scores_would_mean_nothing_is_refused(make, flaw, output, said):
    with pytest.raises(ModelUnavailable, match=said):
        make(flaw, output=output)


@pytest.mark.parametrize(
    ("flaw", "output", "failed"),
    [
        ("random", "logits", "deterministic"),
        ("constant", "logits", "sees-pictures"),
        ("softmax", "logits", "scores"),
        ("sigmoid", "multi-label-logits", "scores"),
    ],
)
def test_what_is_odd_but_can_be_served_is_shown(make, flaw, output, failed):
    loaded = make(flaw, output=output)
    assert failed in [name for name, passed in checks(loaded).items() if not passed]
    assert loaded.found.deterministic == (flaw != "random")


def test_a_model_of_one_size_says_which_it_takes(make):
    with pytest.raises(ModelUnavailable, match="accepts inputs of 64 pixels"):
        make("one size", size=32)
    assert make("one size", size=64).found.input_limits == (64, 64)


def test_a_network_that_takes_any_size_says_how_far_that_was_tried(make):
    assert make(size=64).found.input_limits == (32, 128)


def test_other_weights_than_those_registered_are_refused_with_both_digests(make):
    assert make(weights_digest=weights_digest(Small())).found.weights_digest == weights_digest(Small())
    with pytest.raises(ModelUnavailable, match=f"{weights_digest(Small())}, and {'0' * 64} was registered"):
        make(weights_digest="0" * 64)


def test_the_grid_of_a_transformer_is_found(make):
    loaded = make(network="Patches")
    assert loaded.found.patch_grid == (4, 4)
    assert "block" in loaded.found.spatial_layers
    assert make().found.patch_grid is None


def test_a_method_that_is_not_defined_for_the_layers_is_told_before_it_is_asked_for(make):
    methods = {method.name: method.unavailable for method in describe_model(make(network="Patches")).methods}
    assert "not defined" in methods["excitation-bp"] or "cannot follow" in methods["excitation-bp"]
    assert not methods["igos++"]
    assert not {method.name: method.unavailable for method in describe_model(make()).methods}["excitation-bp"]


def test_registered_layers_are_read_by_default_and_must_be_there(make):
    described = describe_model(make(layers={"spatial": "features.0", "features": "flat"}))
    defaults = {
        method.name: parameter.default.string_value
        for method in described.methods
        for parameter in method.parameters
        if parameter.name == "layer"
    }
    assert defaults["grad-cam"] == defaults["excitation-bp"] == "features.0"
    with pytest.raises(ModelUnavailable, match=r"layers.spatial is 'head'.*features"):
        make(layers={"spatial": "head"})
    with pytest.raises(ModelUnavailable, match=r"layers.features is 'nosuch'.*flat"):
        make(layers={"features": "nosuch"})


def test_a_model_that_takes_channels_last_gives_the_same_scores(make):
    plain, other = make(), make("channels last", preprocessing={"layout": "NHWC"})
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(other.evaluator.module(images), plain.evaluator.module(images))
    assert "model.features" in other.found.spatial_layers


@pytest.mark.parametrize("method", ["igos++", "rise", "grad-cam", "occlusion", "minimal-sufficient-explanations"])
@pytest.mark.parametrize(("flaw", "output"), [("", "multi-label-logits"), ("sigmoid", "multi-label-probabilities")])
def test_independent_labels_are_explained_by_their_own_score(make, method, flaw, output):
    loaded = make(flaw, output=output)
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    scores = Small()(image.unsqueeze(0)).sigmoid()[0].detach()
    reduced = {"igos++": {"iterations": 2}, "rise": {"masks": 16}}.get(method, {})
    events, ends = [], []
    question = Question(image=image, black=black(loaded.entry.preprocessing), target=2)
    steps = explanation_steps(question, EXPLAINERS[method].explainer(**reduced), Metrics(curves=False))
    Engine(loaded.evaluator).run(Task(steps=steps, on_event=events.append, on_end=ends.append))
    assert ends == [None]
    (told,) = [event for event in events if type(event).__name__ == "Prediction"]
    assert told.target.score == pytest.approx(float(scores[2]), abs=1e-4), "its sigmoid, not its share"
    assert method == "minimal-sufficient-explanations" or any(
        isinstance(event, SaliencyMask) and event.final for event in events
    )


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_picture_comes_back_from_the_models_input(order, fit, interpolation):
    preprocessing = Preprocessing(
        input_size=48, resize=64, fit=fit, interpolation=interpolation, channel_order=order, std=(0.2, 0.3, 0.4)
    )
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    returned = to_rgb(to_input(picture, preprocessing), preprocessing)
    assert np.abs(returned.astype(int) - fit_to_input(picture, preprocessing)).max() <= 1
    assert check_preprocessing(preprocessing).passed


def test_the_preset_of_torchvision_weights_is_what_torchvision_does():
    models = pytest.importorskip("torchvision.models")
    preprocessing = resolve_preset(Preprocessing(preset="ConvNeXt_Tiny_Weights.IMAGENET1K_V1"))
    assert (preprocessing.input_size, preprocessing.resize) == (224, 236)
    y, x = np.mgrid[0:300, 0:400]
    picture = np.stack([x * 255 / 399, y * 255 / 299, (x + y) * 255 / 698], -1).astype(np.uint8)
    theirs = models.get_weight(preprocessing.preset).transforms()(torch.from_numpy(picture).permute(2, 0, 1))
    difference = (to_input(picture, preprocessing) - theirs).abs().max()
    assert difference < 0.05, "resizing the crop alone shifts it by parts of a pixel"
    with pytest.raises(ModelUnavailable, match="no classification weights 'Nosuch"):
        resolve_preset(Preprocessing(preset="Nosuch.V1"))


def test_a_wish_for_a_device_is_granted_or_refused():
    entry, modest = (ModelEntry(name="a", source={"kind": "x"}, device={"kind": kind}) for kind in ("cuda", "cpu"))
    with pytest.raises(ModelUnavailable, match="requires cuda, and this worker runs on cpu"):
        choose_place(entry, CPU)
    assert choose_place(modest, CPU) == CPU


def test_bytes_that_live_are_counted_until_they_are_freed():
    start = torch.ones(256)
    with LiveBytes() as live:
        first = start + 1
        second = first * 2
        first.add_(1)
        view = second.view(16, 16)
        del first
    assert (live.live, live.peak) == (1024, 2048)
    assert view.shape == (16, 16)


def test_weights_that_are_laid_out_do_not_disturb_the_count():
    layer, images = FrozenConvolution(nn.Conv2d(3, 4, 1).requires_grad_(False)), torch.ones(2, 3, 8, 8)
    layer(images)
    with LiveBytes() as live:
        outputs = layer(images)
    assert live.peak == outputs.nbytes
