"""What comes out of the queue: requests, pictures, checkpoints and events, damaged at will.

A worker refuses a job that it cannot read with an error that is expected, and never dies of it; a checkpoint that
cannot be read counts as none; an event keeps the identity that the queue appends; a client parses or refuses it.
"""

import sys
import types
from collections.abc import Callable

import torch
from google.protobuf.message import DecodeError
from safetensors.torch import save
from torch import nn

from fuzzing.oracles import MEBI, bounded
from sagittal.client.errors import SagittalError as ClientError
from sagittal.client.parsing import parse_event
from sagittal.core.errors import SagittalError
from sagittal.core.images import ImageLimits
from sagittal.core.jobs import Job, JobKind, JobState, Lane, Lease
from sagittal.core.models import ModelEntry
from sagittal.models.loading import load
from sagittal.queue.events import LASTING, PASSING, classify
from sagittal.queue.settings import QueueSettings
from sagittal.v1 import explanation_pb2, explanation_service_pb2, method_pb2, model_service_pb2, tensor_pb2
from sagittal.worker.concepts.jobs import ConceptShelf
from sagittal.worker.concepts.store import ConceptSettings, connect_concept_store
from sagittal.worker.execution.checkpoints import unpack
from sagittal.worker.execution.work import read_work
from sagittal.worker.hosting.description import describe_model

#: Bytes of an input.
MAX_LENGTH = 4096

#: Side of the model's input in pixels.
SIZE = 16

LIMITS = ImageLimits(max_bytes=2**16, max_pixels=2**12, max_frames=8)


class Network(nn.Module):
    """Small, with a spatial layer, so that every method may be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs).mean((2, 3)))


def _loaded():
    module = types.ModuleType("fuzzed_networks")
    module.Network = Network  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    entry = ModelEntry(
        name="m",
        source={"kind": "python", "factory": "fuzzed_networks:Network"},
        preprocessing={"input_size": SIZE, "fit": "squash"},
    )
    return load(entry, torch.device("cpu"))


LOADED = _loaded()
DESCRIBED = describe_model(LOADED)
SHELF = ConceptShelf(store=connect_concept_store(ConceptSettings(), QueueSettings()))

_IMAGE = tensor_pb2.Image(
    pixels=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[2, 2, 3], data=bytes(range(12)))
).SerializeToString()


#: Memory and processor time that reading an input of `MAX_LENGTH` may take, in bytes and seconds.
MEMORY, SECONDS = 64 * MEBI, 5.0


def run(data: bytes) -> None:
    """Reads the rest of the input as what its first byte says, in bounded memory and time."""
    reader = _READERS[data[0] % len(_READERS) if data else 0]
    with bounded(reader.__name__, memory=MEMORY, seconds=SECONDS):
        reader(data[1:])


def _read_explanation(data: bytes) -> None:
    _read_job(JobKind.EXPLANATION, data, _IMAGE)


def _read_prediction(data: bytes) -> None:
    _read_job(JobKind.PREDICTION, data, _IMAGE)


def _read_regions(data: bytes) -> None:
    _read_job(JobKind.REGIONS, data, _IMAGE)


def _read_picture(data: bytes) -> None:
    _read_job(JobKind.PREDICTION, b"", data)


def _read_job(kind: JobKind, request: bytes, image: bytes) -> None:
    try:
        read_work(_lease(kind, request, image), LOADED, DESCRIBED, LIMITS, SHELF)
    except SagittalError as error:
        assert error.message


def _read_checkpoint(data: bytes) -> None:
    unpack(_lease(JobKind.EXPLANATION, b"", _IMAGE, data), LOADED)


def _read_event(data: bytes) -> None:
    assert classify(data) in (PASSING, LASTING)
    try:
        event = explanation_pb2.ExplanationEvent.FromString(data)
    except DecodeError:
        return
    identity = explanation_pb2.ExplanationEvent(job_id="0" * 32, sequence=7).SerializeToString()
    merged = explanation_pb2.ExplanationEvent.FromString(data + identity)
    assert (merged.job_id, merged.sequence) == ("0" * 32, 7)
    assert merged.WhichOneof("event") == event.WhichOneof("event")
    try:
        parse_event(event)
    except ClientError as error:
        assert str(error)


def _lease(kind: JobKind, request: bytes, image: bytes, checkpoint: bytes | None = None) -> Lease:
    job = Job(
        job_id="0" * 32,
        kind=kind,
        state=JobState.RUNNING,
        model="m",
        version="1",
        method="",
        lane=Lane.BATCH,
        tenant="default",
        request_id="",
        created=0.0,
        ended=None,
        deadline=None,
        attempt=1,
        worker="w",
        last_sequence=1,
        cancel_requested=False,
    )
    return Lease(job=job, request=request, images={"image": image, "baseline": image}, token=1, checkpoint=checkpoint)


_READERS: tuple[Callable[[bytes], None], ...] = (
    _read_explanation,
    _read_prediction,
    _read_regions,
    _read_picture,
    _read_checkpoint,
    _read_event,
)


def seeds() -> list[bytes]:
    """Returns inputs to begin with: a valid one for each reader, a request for each method, an event of each kind."""
    found = {_read_explanation: [], _read_prediction: [], _read_regions: [], _read_picture: [_IMAGE]}
    for field in method_pb2.Method.DESCRIPTOR.fields:
        spec = explanation_pb2.ExplanationSpec(seed=3, max_evaluations=900)
        getattr(spec.method, field.name).SetInParent()
        spec.target.index, spec.baseline.kind = 1, explanation_pb2.BASELINE_KIND_IMAGE
        spec.metrics.boxes.add(left=1, right=3, top=2, bottom=5)
        found[_read_explanation].append(spec.SerializeToString())
    found[_read_prediction].append(model_service_pb2.PredictRequest(model="m", top=3).SerializeToString())
    regions = explanation_service_pb2.ScoreRegionsRequest(hide=True)
    regions.sets.add(grid=7, patches=[1, 5, 48])
    regions.image.target.index, regions.image.patch_shape = 2, method_pb2.PATCH_SHAPE_TENT
    found[_read_regions].append(regions.SerializeToString())
    state = {"state.masks": torch.rand(1, 4), "usage": torch.tensor([1, 2, 3]), "origin": torch.zeros(32)}
    found[_read_checkpoint] = [save(state)]
    found[_read_event] = [event.SerializeToString() for event in _events()]
    return [bytes([_READERS.index(reader)]) + data for reader, datas in found.items() for data in datas]


def _events() -> list[explanation_pb2.ExplanationEvent]:
    events = []
    for field in explanation_pb2.ExplanationEvent.DESCRIPTOR.oneofs_by_name["event"].fields:
        event = explanation_pb2.ExplanationEvent()
        getattr(event, field.name).SetInParent()
        events.append(event)
    saliency = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT16, shape=[2, 2], data=bytes(8))
    events.append(explanation_pb2.ExplanationEvent(mask=explanation_pb2.Mask(saliency=saliency, final=True)))
    return events
