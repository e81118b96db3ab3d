"""A source is read strictly, and weights fit the architecture or are refused with the reason."""

import os
from importlib import metadata

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sagittal.models.sources import Access, ModelUnavailable, load_source
from sagittal.models.sources.weights import WeightsReference, load_weights


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


class Malicious:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def fit(tmp_path):
    """Loads the file of a name in the operator's directory into a network."""

    def fit(name, **selection):
        module = network()
        load_weights(module, WeightsReference(path=name, **selection), Access(directories=(tmp_path,)))
        return module.state_dict()

    return fit


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_are_loaded(tmp_path, fit, name):
    state = network().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    assert same(state, fit(name))


def test_tensors_are_found_within_a_training_checkpoint(tmp_path, fit):
    state = network().state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()} | {"optimiser.step": torch.zeros(1)}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "checkpoint.pt")
    assert same(state, fit("checkpoint.pt", key="state_dict", prefix="module."))
    with pytest.raises(ModelUnavailable, match="no tensors under 'ema', but epoch, state_dict"):
        fit("checkpoint.pt", key="ema")
    with pytest.raises(ModelUnavailable, match=r"lack the tensor 0.weight, of shape \(4, 3, 3, 3\): they have epoch"):
        fit("checkpoint.pt")


def test_counters_of_batches_may_be_missing(tmp_path, fit):
    state = {name: tensor for name, tensor in network().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "weights.safetensors")
    assert same(state, fit("weights.safetensors"))


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"0.weight": trap}], ids=["alone", "among weights"])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path, fit, wrap):
    torch.save(wrap(Malicious(tmp_path / "trace")), tmp_path / "weights.pt")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        fit("weights.pt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda state: state.pop("3.bias"), r"lack the tensor 3.bias, of shape \(2,\)", id="missing"),
        pytest.param(
            lambda state: state.update({"0.weight": torch.zeros(1)}),
            r"have 0.weight of shape \(1,\), the architecture requires \(4, 3, 3, 3\)",
            id="shape",
        ),
        pytest.param(lambda state: state.update({"0.bias": 3}), "lack the tensor 0.bias", id="no tensor"),
        pytest.param(
            lambda state: state.update({"head.bias": torch.zeros(7)}),
            r"have head.bias of shape \(7,\), which the architecture lacks",
            id="too many",
        ),
    ],
)
def test_a_mismatch_names_the_first_tensor_that_does_not_fit(tmp_path, fit, change, named):
    state = network().state_dict()
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelUnavailable, match=named):
        fit("weights.pt")


def test_a_file_that_is_garbage_cut_off_or_one_tensor_is_refused(tmp_path, fit):
    (tmp_path / "garbage.pt").write_bytes(b"not weights")
    (tmp_path / "garbage.safetensors").write_bytes(b"not weights")
    save_file(network().state_dict(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-8])
    for name in ("garbage.pt", "garbage.safetensors", "cut.safetensors"):
        with pytest.raises(ModelUnavailable, match=f"{name} cannot be read"):
            fit(name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelUnavailable, match="expected tensors by name"):
        fit("tensor.pt")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        pytest.param({}, "source.kind is None; give one of", id="no kind"),
        pytest.param({"kind": "pickle"}, "give one of", id="unknown kind"),
        pytest.param({"kind": "torchvision"}, "source.model: Field required", id="setting missing"),
        pytest.param({"kind": "torchvision", "model": "resnet18", "wieghts": "x"}, "source.wieghts", id="misspelt"),
        pytest.param({"kind": "torchvision", "model": "resnet18", "classes": 0}, "source.classes", id="no classes"),
        pytest.param({"kind": "torchvision", "model": "resnet1"}, "no classifier 'resnet1'", id="no such model"),
        pytest.param(
            {"kind": "torchvision", "model": "resnet18", "weights": {"path": "a", "sha256": "12"}},
            "source.weights.sha256",
            id="half a checksum",
        ),
        pytest.param(
            {"kind": "torchvision", "model": "resnet18", "weights": "https://example.com/a.pt"},
            "does not exist|outside",
            id="a URL is a path like any other",
        ),
        pytest.param(
            {"kind": "torchvision", "model": "resnet18", "preset": "IMAGENET1K_V9"},
            "no weights 'IMAGENET1K_V9'; it has IMAGENET1K_V1",
            id="no such preset",
        ),
        pytest.param(
            {"kind": "torchvision", "model": "resnet18", "preset": "IMAGENET1K_V1"},
            "requires its file; download it from https://download.pytorch.org/.*resnet18-f37072fd.pth",
            id="a preset without its file",
        ),
        pytest.param({"kind": "timm", "model": "hf-hub:someone/model"}, "timm has no model", id="a hub"),
        pytest.param(
            {"kind": "timm", "model": "test_resnet", "arguments": {"pretrained": True}},
            "source.arguments.pretrained",
            id="timm's download",
        ),
        pytest.param({"kind": "python", "factory": "nowhere:make"}, "cannot be imported", id="no such module"),
        pytest.param({"kind": "python", "factory": "os:getcwd"}, "not a torch module", id="no module"),
        pytest.param({"kind": "python", "factory": "mine"}, "no entry point of the group sagittal.models", id="absent"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(source, named):
    with pytest.raises(ModelUnavailable, match=named):
        load_source(source)


@pytest.mark.parametrize(
    "source", [{"kind": "torchvision", "model": "squeezenet1_1"}, {"kind": "timm", "model": "test_resnet"}]
)
def test_random_weights_come_from_the_seed_alone(source):
    first, again, other = (load_source(source | {"classes": 3, "seed": seed}).module.state_dict() for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_a_file_that_is_not_the_presets_is_refused(tmp_path):
    source = {"kind": "torchvision", "model": "squeezenet1_1", "preset": "IMAGENET1K_V1", "weights": "w.pt"}
    torch.save(load_source({"kind": "torchvision", "model": "squeezenet1_1"}).module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelUnavailable, match=r"wrong checksum: SHA-256 [0-9a-f]{64}, expected b8a52dc0"):
        load_source(source, Access(directories=(tmp_path,)))


def test_only_listed_functions_are_called():
    source = {"kind": "python", "factory": "known_models:looks_at_left"}
    for listed in ("known_models:looks_at_left", "known_models:*", "*"):
        assert isinstance(load_source(source, Access(factories=(listed,))).module, nn.Module)
    for listed in ((), ("known_models:other",), ("known:*",)):
        with pytest.raises(ModelUnavailable, match="may not be called"):
            load_source(source, Access(factories=listed))


def test_entry_points_of_installed_packages_make_models(monkeypatch):
    point = metadata.EntryPoint("left", "known_models:looks_at_left", "sagittal.models")
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([point]).select(group=group))
    assert isinstance(load_source({"kind": "python", "factory": "left"}, Access(factories=())).module, nn.Module)
    with pytest.raises(ModelUnavailable, match="which has left"):
        load_source({"kind": "python", "factory": "right"}, Access(factories=()))
