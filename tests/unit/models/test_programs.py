"""Models saved as programs: TorchScript, torch.export and ONNX are explained as the network they were made of."""

import os
import warnings

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from sagittal.core.models import ModelEntry
from sagittal.models.loading import load
from sagittal.models.row_equality import EQUAL_ROWS
from sagittal.models.sources import Access, ModelUnavailable, load_source

CPU = torch.device("cpu")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 5)).eval()


def script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network()).save(path)


def export(path):
    torch.export.save(torch.export.export(network(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)


def to_onnx(path, dynamic=True, batch=3):
    axes = {"images": {0: "n"}, "scores": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        names = {"input_names": ["images"], "output_names": ["scores"], "dynamic_axes": axes}
        torch.onnx.export(network(), (IMAGES[:batch],), path, dynamo=False, **names)


SAVED = {"torchscript": script, "torch-export": export, "onnx": to_onnx}


@pytest.fixture
def sourced(tmp_path):
    def sourced(kind, **settings):
        access = Access(directories=(tmp_path,), code_directories=(tmp_path,))
        return load_source({"kind": kind, "file": "model"} | settings, access)

    return sourced


@pytest.fixture
def loaded(tmp_path):
    def loaded(kind, **settings):
        source = {"kind": kind, "file": "model"} | settings
        entry = ModelEntry(name="a", source=source, preprocessing={"input_size": 32, "fit": "squash"})
        return load(entry, CPU, access=Access(directories=(tmp_path,), code_directories=(tmp_path,)))

    return loaded


def outputs(sourced):
    with torch.inference_mode():
        return sourced.module(IMAGES)


def same_as_the_network(values):
    with torch.inference_mode():
        torch.testing.assert_close(values, network()(IMAGES), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", SAVED)
def test_a_program_says_what_the_network_says_and_gives_gradients(tmp_path, loaded, sourced, kind):
    SAVED[kind](str(tmp_path / "model"))
    same_as_the_network(outputs(sourced(kind)))
    found = loaded(kind).found
    assert found.supports_gradients
    assert found.classes == 5
    assert loaded(kind).digest == loaded(kind).digest


def test_torchscript_has_no_layers_and_says_why_it_is_not_made_faster(tmp_path, loaded):
    script(tmp_path / "model")
    found = loaded("torchscript").found
    assert found.spatial_layers == found.feature_layers == ()
    # The layout of the inputs is chosen by time, and rows are compared for every model.
    assert not any(step.applied for step in found.steps if step.name not in (EQUAL_ROWS, "channels-last"))
    assert {step.detail for step in found.steps[:3]} == {"TorchScript cannot be traced; it runs as it was saved"}


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
def test_code_is_loaded_from_its_own_directories_alone(tmp_path, kind):
    SAVED[kind](str(tmp_path / "model"))
    with pytest.raises(ModelUnavailable, match="SAGITTAL_SOURCES__CODE_DIRECTORIES lists no directory"):
        load_source({"kind": kind, "file": "model"}, Access(directories=(tmp_path,)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("torchscript", "cannot be loaded as TorchScript"),
        ("torch-export", "cannot be loaded as a torch.export archive"),
        ("onnx", "is no ONNX model, or is damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, sourced, kind, said):
    SAVED[kind](str(tmp_path / "whole"))
    for content in (b"", b"garbage", (tmp_path / "whole").read_bytes()[:-100]):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(ModelUnavailable, match=rf"{said}|damaged archive"):
            sourced(kind)


def test_onnx_is_converted_and_compared(tmp_path, loaded):
    to_onnx(tmp_path / "model")
    found = loaded("onnx").found
    assert found.supports_gradients
    assert found.spatial_layers
    assert found.steps[0].applied
    assert "of onnxruntime" in found.steps[0].detail


def test_without_a_conversion_onnxruntime_answers_without_gradients(tmp_path, loaded, sourced):
    to_onnx(tmp_path / "model")
    same_as_the_network(outputs(sourced("onnx", runtime="onnxruntime")))
    found = loaded("onnx", runtime="onnxruntime").found
    assert not found.supports_gradients
    assert found.spatial_layers == ()
    assert "the model runs in onnxruntime" in found.steps[0].detail


def test_a_model_of_one_image_at_a_time_answers_batches(tmp_path, sourced):
    to_onnx(tmp_path / "model", dynamic=False, batch=1)
    same_as_the_network(outputs(sourced("onnx", runtime="onnxruntime")))
    same_as_the_network(outputs(sourced("onnx")))


def onnx_of(tmp_path, nodes, tensor="images", outputs=("scores",)):
    image = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["n", 3, 8, 8])
    scores = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 192]) for name in outputs]
    graph = helper.make_graph(nodes, "g", [image], scores)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model")


def test_what_cannot_be_converted_says_so_and_runs_anyway(tmp_path, sourced):
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("Shrink", ["flat"], ["scores"])]
    onnx_of(tmp_path, nodes)
    source = sourced("onnx")
    assert not source.notes[0].applied
    assert "onnx2torch: NotImplementedError" in source.notes[0].detail
    assert "it runs in onnxruntime" in source.notes[0].detail
    assert source.module(torch.zeros(2, 3, 8, 8)).shape == (2, 192)
    with pytest.raises(ModelUnavailable, match="cannot be converted: onnx2torch"):
        sourced("onnx", runtime="torch")


@pytest.mark.parametrize("place", ["node", "tensor"])
def test_names_in_a_file_never_become_code(tmp_path, sourced, place):
    trace = tmp_path / "trace"
    name = f'a")(0) or __import__("os").mkdir("{trace}") or getattr(self, "b'
    tensor = name if place == "tensor" else "images"
    onnx_of(tmp_path, [helper.make_node("Flatten", [tensor], ["scores"], name=name)], tensor)
    source = sourced("onnx")
    assert source.module(torch.zeros(2, 3, 8, 8)).shape == (2, 192)
    assert source.notes[0].applied == (place == "node")
    assert not trace.exists()


def test_tensors_in_other_files_are_not_read(tmp_path, sourced):
    to_onnx(tmp_path / "whole")
    model = onnx.load(tmp_path / "whole")
    onnx.save(model, tmp_path / "model", save_as_external_data=True, location="beside", size_threshold=0)
    os.remove(tmp_path / "beside")
    (tmp_path / "beside").symlink_to("/etc/passwd")
    with pytest.raises(ModelUnavailable, match=r"keeps tensors in other files, such as .*; save it in one piece"):
        sourced("onnx")


def outside(dims=(1,)):
    """A tensor whose values are the first bytes of a file on the host."""
    tensor = TensorProto(name="secret", data_type=TensorProto.INT8, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "1")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(**attribute):
    return helper.make_node("Constant", [], ["leak"], **attribute)


def branch(node):
    result = helper.make_tensor_value_info("leak", TensorProto.INT8, [1])
    return helper.make_graph([node], "branch", [], [result])


def sparse():
    indices = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    return helper.make_sparse_tensor(outside(), indices, [1])


def in_a_subgraph(model):
    condition = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    inner = branch(constant(value=outside()))
    model.graph.node.append(helper.make_node("If", ["always"], ["leak"], then_branch=inner, else_branch=inner))


def in_a_function(model):
    model.functions.append(
        helper.make_function("own", "Leak", [], ["leak"], [constant(value=outside())], model.opset_import)
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Leak", [], ["leak"], domain="own"))


def location_alone(model):
    tensor = outside()
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


PLACES = {
    "constant": lambda model: model.graph.node.append(constant(value=outside())),
    "sparse-constant": lambda model: model.graph.node.append(constant(sparse_value=sparse())),
    "sparse-initializer": lambda model: model.graph.sparse_initializer.append(sparse()),
    "initializer": lambda model: model.graph.initializer.append(outside()),
    "subgraph": in_a_subgraph,
    "function": in_a_function,
    "default-of-a-function": lambda model: model.functions.add().attribute_proto.append(
        helper.make_attribute("value", outside())
    ),
    "several-in-one-attribute": lambda model: model.graph.node.append(
        helper.make_node("Custom", [], ["leak"], domain="own", values=[outside()])
    ),
    "training": lambda model: model.training_info.add().initialization.initializer.append(outside()),
    "location-alone": location_alone,
}
"""Where in a model a tensor may hide; each adds one."""


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "torch"])
@pytest.mark.parametrize("place", PLACES)
def test_no_tensor_anywhere_in_a_file_reads_another_file(tmp_path, sourced, monkeypatch, place, runtime):
    (tmp_path / "secret").write_bytes(b"S")
    monkeypatch.chdir(tmp_path)  # libraries look there
    onnx_of(tmp_path, [helper.make_node("Flatten", ["images"], ["scores"])])
    model = onnx.load(tmp_path / "model")
    PLACES[place](model)
    (tmp_path / "model").write_bytes(model.SerializeToString())
    with pytest.raises(ModelUnavailable, match="keeps tensors in other files, such as 'secret'; save it in one piece"):
        sourced("onnx", runtime=runtime)


def test_what_a_model_says_in_fields_that_onnx_does_not_know_reaches_no_other_library(tmp_path, sourced, monkeypatch):
    onnx_of(tmp_path, [helper.make_node("Flatten", ["images"], ["scores"])])
    with (tmp_path / "model").open("ab") as file:
        file.write(b"\xfa\x3f\x06UNKNWN")  # field 1023, six bytes
    given, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, *rest, **named: given.append(model) or session(model, *rest, **named),
    )
    sourced("onnx", runtime="onnxruntime")
    assert b"UNKNWN" not in given[0]


def test_the_output_is_named_where_there_are_several(tmp_path, sourced):
    nodes = [helper.make_node("Flatten", ["images"], ["scores"]), helper.make_node("Neg", ["scores"], ["other"])]
    onnx_of(tmp_path, nodes, outputs=("scores", "other"))
    with pytest.raises(ModelUnavailable, match="has the outputs scores, other: set one of these"):
        sourced("onnx")
    for runtime in ("torch", "onnxruntime"):
        module = sourced("onnx", output="other", runtime=runtime).module
        assert (module(torch.ones(2, 3, 8, 8)) == -1).all()
