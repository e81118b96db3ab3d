"""A model that cannot be loaded says in GetModel what is wrong with it and what was expected; others are not harmed."""

import io
import threading
import zipfile

import pytest
import torch
from embedded_queue import Registry
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file

from sagittal.core.models import ModelEntry, declaration_of
from sagittal.models.sources import Access
from sagittal.v1 import model_pb2
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics

NETWORK = {"kind": "torchvision", "model": "squeezenet1_1", "classes": 2}


def weights(path, **more):
    return {"source": NETWORK | {"weights": {"path": path, **more} if more else path}}


BAD = {
    "other-architecture": (
        weights("other.safetensors"),
        "have features.0.weight of shape (96, 3, 7, 7), the architecture requires (64, 3, 3, 3); check the archi",
    ),
    "absent-weights": (weights("absent.pt"), "the file absent.pt does not exist in"),
    "cut-safetensors": (weights("cut.safetensors"), "cut.safetensors cannot be read"),
    "cut-state-dict": (weights("cut.pt"), "cut.pt cannot be read"),
    "wrong-checksum": (weights("whole.safetensors", sha256="0" * 64), f"expected {'0' * 64}; it is another file"),
    "zip-bomb": (weights("bomb.pt"), "for 16777216; PyTorch stores tensors uncompressed, so that it did not write"),
    "outside": (weights("../outside.pt"), "../outside.pt is outside the allowed directories"),
    "link-to-outside": (weights("link.pt"), "link.pt is outside the allowed directories"),
    "absolute": (weights("/etc/passwd"), "/etc/passwd is outside the allowed directories"),
    "absent-labels": ({"source": NETWORK, "labels": "absent.txt"}, "the file absent.txt does not exist in"),
    "few-labels": ({"source": NETWORK, "labels": ["cat"]}, "there are 1 for 2 classes; give one for each"),
    "refused-input": (
        {"source": NETWORK, "preprocessing": {"input_size": 16, "fit": "squash"}},
        "fails on an input of 16x16 pixels",
    ),
    "unlisted-factory": (
        {"source": {"kind": "python", "factory": "os:abort"}},
        "source.factory 'os:abort' may not be called: SAGITTAL_SOURCES__FACTORIES lists",
    ),
    "program": (
        {"source": {"kind": "torchscript", "file": "cut.pt"}},
        "cut.pt may not be loaded: SAGITTAL_SOURCES__CODE_DIRECTORIES lists no directory",
    ),
    "no-such-kind": ({"source": {"kind": "pickle"}}, "source.kind is 'pickle'; give one of efficientnet-lite, onnx"),
}
"""What is registered over the API, and what is said of it."""


def spoil(directory):
    """Writes files as they go wrong."""
    models = pytest.importorskip("torchvision.models")
    save_file(models.squeezenet1_0(num_classes=2).state_dict(), directory / "other.safetensors")
    whole, content = models.squeezenet1_1(num_classes=2).state_dict(), io.BytesIO()
    save_file(whole, directory / "whole.safetensors")
    (directory / "cut.safetensors").write_bytes((directory / "whole.safetensors").read_bytes()[:-100])
    torch.save(whole, content)
    (directory / "cut.pt").write_bytes(content.getvalue()[:-1000])
    with zipfile.ZipFile(directory / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    (directory.parent / "outside.pt").write_bytes(content.getvalue())
    (directory / "link.pt").symlink_to(directory.parent / "outside.pt")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What GetModel shows of a model, once a worker has looked at all of them and at a sound one."""
    directory = tmp_path_factory.mktemp("sources") / "models"
    directory.mkdir()
    spoil(directory)
    registry, metrics = Registry(), WorkerMetrics.create(CollectorRegistry())
    access, device = Access(directories=(directory,), factories=("known_models:*",)), torch.device("cpu")
    worker = Reconciler(None, registry.workers, metrics, worker="w", device=device, access=access)
    sound = {"source": {"kind": "python", "factory": "known_models:looks_at_left"}}
    sound["preprocessing"] = {"input_size": 56, "fit": "squash"}
    small = {"preprocessing": {"input_size": 64, "fit": "squash"}}
    tables = {name: table for name, (table, _) in BAD.items()} | {"sound": sound}
    for name, fields in tables.items():
        declaration = declaration_of(ModelEntry(name=name, **small | fields))
        registry.call(lambda models, declaration=declaration: models.register(declaration))
    worker.load_all(batch_size=4, stopped=threading.Event())
    yield lambda name: registry.call(lambda models: models.model(name, "1"))
    registry.workers.close()


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_model_is_told_in_full(shown, name):
    (worker,) = shown(name).workers
    assert worker.state == model_pb2.MODEL_STATE_FAILED
    assert BAD[name][1] in worker.message
    assert "Traceback" not in worker.message


def test_an_input_size_that_the_model_refuses_comes_with_those_that_it_takes(shown):
    assert "it accepts inputs of 32, 64, 96" in shown("refused-input").workers[0].message


def test_a_worker_goes_on_with_its_other_models(shown):
    assert shown("sound").workers[0].state == model_pb2.MODEL_STATE_READY
