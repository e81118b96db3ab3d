"""Every example of docs/models.md is a model that loads."""

import hashlib
import importlib.util
import re
import shutil
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from inference_server import FakeServer, serving
from known_models import looks_at_left
from safetensors.torch import save_file
from torch import nn

from sagittal.core.models import parse_entries
from sagittal.models.sources import SOURCES, Access, load_source
from sagittal.models.sources.access import Server

DOCUMENT = (Path(__file__).parents[3] / "docs" / "models.md").read_text()

EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)


def network():
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(*layers).eval()


def squeezenet(path):
    save_file(load_source({"kind": "torchvision", "model": "squeezenet1_1"}).module.state_dict(), path)


def checkpoint(path):
    state = load_source({"kind": "timm", "model": "test_resnet", "classes": 5}).module.state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)


def scripted(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network()).save(path)


def exported(path):
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network(), (torch.zeros(3, 3, 64, 64),), dynamic_shapes=shapes), path)


def onnx(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["images"], "output_names": ["scores"], "dynamic_axes": {"images": {0: "n"}}}
        torch.onnx.export(network(), (torch.zeros(2, 3, 64, 64),), path, dynamo=False, **names)


FILES = {
    "squeezenet.safetensors": squeezenet,
    "squeezenet/v2.safetensors": squeezenet,
    "checkpoint.pt": checkpoint,
    "scripted.pt": scripted,
    "exported.pt2": exported,
    "model.onnx": onnx,
}


def named_file(source):
    """Returns the file that a source names; None where it names none."""
    file = source.get("file") or source.get("weights")
    return file["path"] if isinstance(file, dict) else file


@pytest.mark.parametrize("text", EXAMPLES, ids=[tomllib.loads(text)["models"][0]["name"] for text in EXAMPLES])
def test_an_example_loads_as_it_stands(tmp_path, text):
    (entry,) = parse_entries(tomllib.loads(text), "docs/models.md")
    source = dict(entry.source)
    access = Access(directories=(tmp_path,), code_directories=(tmp_path,), cache=tmp_path / "cache")
    if source["kind"] == "efficientnet-lite" and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("efficientnet-lite-pytorch is not installed")
    if file := named_file(source):
        path = tmp_path / Path(file).name
        FILES[file](str(path))
    if isinstance(source.get("weights"), dict) and "store" in source["weights"]:
        # Fetching has tests of its own: here the file lies in the cache, as it does after the first time.
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        source["weights"] = source["weights"] | {"sha256": digest}
        (tmp_path / "cache").mkdir(mode=0o700)
        shutil.copy(path, tmp_path / "cache" / f"{digest}{path.suffix}")
        access = access.model_copy(update={"stores": {"models": object()}})
    side = entry.preprocessing.input_size
    with serving(FakeServer(looks_at_left())) as server, torch.inference_mode():
        access = access.model_copy(update={"servers": {"triton": Server(address=server.address)}})
        outputs = load_source(source, access).module.eval()(torch.zeros(2, 3, side, side))
    assert outputs.shape[0] == 2
    assert not isinstance(entry.labels, list) or len(entry.labels) in (0, outputs.shape[1])


def test_there_is_an_example_of_every_kind():
    assert {tomllib.loads(text)["models"][0]["source"]["kind"] for text in EXAMPLES} == set(SOURCES)


def test_every_setting_of_the_document_exists():
    named = set(re.findall(r"SAGITTAL_SOURCES__(\w+)", DOCUMENT))
    assert named <= {name.upper() for name in Access.model_fields}
