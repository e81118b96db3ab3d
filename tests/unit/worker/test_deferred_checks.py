"""A worker checks what the service could not: method and label of a job that came before any worker had the model."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn

from sagittal.core.errors import FailedPrecondition, InvalidRequest, SagittalError
from sagittal.core.images import ImageLimits
from sagittal.core.models import ModelEntry
from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.v1 import explanation_pb2, method_pb2, tensor_pb2
from sagittal.worker.execution.requests import Request, read_request
from sagittal.worker.hosting.description import describe_model

IMAGE = tensor_pb2.Image(
    pixels=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[2, 2, 3], data=bytes(range(12)))
).SerializeToString()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs.mean((2, 3)))


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    module = ModuleType("deferred_networks")
    module.Network = Network  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, module.__name__, module)
        entry = ModelEntry(
            name="lamp",
            source={"kind": "python", "factory": "deferred_networks:Network"},
            preprocessing={"input_size": 16, "fit": "squash"},
            labels=["off", "on"],
        )
        yield load(entry, torch.device("cpu"))


def read(loaded: LoadedModel, **spec: object) -> Request:
    payload = explanation_pb2.ExplanationSpec(**spec).SerializeToString()
    return read_request(payload, {"image": IMAGE}, loaded, describe_model(loaded), ImageLimits())


def test_a_label_is_found_by_the_worker(loaded: LoadedModel) -> None:
    assert read(loaded, target=explanation_pb2.Target(label="ON")).question.target == 1


@pytest.mark.parametrize(
    ("spec", "error", "field"),
    [
        ({"target": explanation_pb2.Target(label="of")}, InvalidRequest, "spec.target.label"),
        ({"target": explanation_pb2.Target(index=2)}, InvalidRequest, "spec.target.index"),
        (
            {"method": method_pb2.Method(custom=method_pb2.CustomMethod(name="glow"))},
            InvalidRequest,
            "spec.method.custom.name",
        ),
        (
            {"method": method_pb2.Method(rise=method_pb2.RISE(masks=0))},
            InvalidRequest,
            "spec.method.rise.masks",
        ),
        ({"method": method_pb2.Method(grad_cam=method_pb2.GradCAM())}, FailedPrecondition, "spec.method.grad_cam"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_of_its_field(
    loaded: LoadedModel, spec: dict[str, object], error: type[SagittalError], field: str
) -> None:
    with pytest.raises(error) as caught:
        read(loaded, **spec)
    assert caught.value.field == field
