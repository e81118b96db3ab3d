"""Weights fit the architecture or are refused with the reason, and nothing in a file is ever run."""

import os

import pytest
import torch
from torch import nn

from sagittal.models.sources import ModelUnavailable, load_source, load_weights


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))


class Malicious:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_weights_are_loaded(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    module = network()
    load_weights(module, tmp_path / "weights.pt")
    expected = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(expected[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"0.weight": trap}], ids=["alone", "among weights"])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path, wrap):
    torch.save(wrap(Malicious(tmp_path / "trace")), tmp_path / "weights.pt")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load_weights(network(), tmp_path / "weights.pt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda state: state.pop("2.bias"), "lack the tensor 2.bias", id="missing"),
        pytest.param(lambda state: state.update({"0.weight": torch.zeros(1)}), r"0.weight of shape \(1,\)", id="shape"),
        pytest.param(lambda state: state.update({"0.bias": 3}), "lack the tensor 0.bias", id="no tensor"),
    ],
)
def test_a_mismatch_names_the_first_tensor_that_does_not_fit(tmp_path, change, named):
    state = network().state_dict()
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelUnavailable, match=named):
        load_weights(network(), tmp_path / "weights.pt")


def test_a_file_that_is_absent_garbage_or_one_tensor_is_refused(tmp_path):
    with pytest.raises(ModelUnavailable, match="do not exist"):
        load_weights(network(), tmp_path / "absent.pt")
    (tmp_path / "garbage.pt").write_bytes(b"not weights")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load_weights(network(), tmp_path / "garbage.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelUnavailable, match="expected tensors by name"):
        load_weights(network(), tmp_path / "tensor.pt")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        pytest.param({}, "source.kind is None; give one of", id="no kind"),
        pytest.param({"kind": "pickle"}, "give one of", id="unknown kind"),
        pytest.param({"kind": "torchvision"}, "model", id="setting missing"),
        pytest.param({"kind": "torchvision", "model": "resnet18", "wieghts": "x"}, "wieghts", id="setting misspelt"),
        pytest.param({"kind": "torchvision", "model": "resnet1"}, "no model 'resnet1'", id="no such model"),
        pytest.param({"kind": "python", "factory": "nowhere:make"}, "cannot be imported", id="no such module"),
        pytest.param({"kind": "python", "factory": "os:getcwd"}, "not a torch module", id="no module"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(source, named):
    pytest.importorskip("torchvision")
    with pytest.raises(ModelUnavailable, match=named):
        load_source(source)


def test_random_weights_come_from_the_seed_alone():
    pytest.importorskip("torchvision")
    source = {"kind": "torchvision", "model": "squeezenet1_1", "classes": 3}
    first, again, other = (load_source(source | {"seed": seed}).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
