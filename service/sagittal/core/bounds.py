"""Limits for the length of every text and list in a request, in one table keyed by the field's full name.

`check_bounds` runs before any other code reads a request. A test fails if a field has no limit here, or if a limit
names a field that does not exist.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from sagittal.core.annotated_parts import MAX_NAME, MAX_PARTS
from sagittal.core.errors import InvalidRequest
from sagittal.core.measurements import MAX_BACKGROUNDS, MAX_BOXES
from sagittal.core.models import MAX_LABELS
from sagittal.core.patch_sets import MAX_GRID, MAX_SETS
from sagittal.core.requests import MAX_JOB_LABELS, MAX_REQUEST_ID
from sagittal.core.tensors import MAX_DIMENSIONS

#: Names of models, versions, methods and concept sets; tokens issued by the service; file names and layers.
_NAME, _TOKEN, _PATH = 128, 512, 1_024

#: Characters of one class label.
MAX_LABEL = 1_024

#: Sentences that the service writes into a model, which a caller may send back with it.
_SENTENCE = 8_192

#: Classes that one concept fit may name.
_MAX_TARGETS = 1_000

#: Characters of the key of an item in a batch.
MAX_ITEM_KEY = 512

#: Changes to a concept set in one request.
MAX_CHANGES = 1_000

#: Bytes of a `Struct`, which can nest to any depth.
MAX_STRUCT_BYTES = 64 * 1024

#: Texts and messages in all lists of one request together.
MAX_ELEMENTS = 150_000

CHARACTERS: Mapping[str, int] = {
    "sagittal.v1.ExplanationSpec.model": _NAME,
    "sagittal.v1.ExplanationSpec.model_version": _NAME,
    "sagittal.v1.ExplanationSpec.request_id": MAX_REQUEST_ID,
    "sagittal.v1.Target.label": MAX_LABEL,
    "sagittal.v1.GradCAM.layer": _PATH,
    "sagittal.v1.ExcitationBackprop.layer": _PATH,
    "sagittal.v1.Concepts.concept_set": _NAME,
    "sagittal.v1.Concepts.heatmap_method": _NAME,
    "sagittal.v1.CustomMethod.name": _NAME,
    "sagittal.v1.WatchExplanationRequest.job_id": _NAME,
    "sagittal.v1.GetExplanationRequest.job_id": _NAME,
    "sagittal.v1.GetExplanationRequest.page_token": _TOKEN,
    "sagittal.v1.GetExplanationSpecRequest.job_id": _NAME,
    "sagittal.v1.GetExplanationImageRequest.job_id": _NAME,
    "sagittal.v1.CancelExplanationRequest.job_id": _NAME,
    "sagittal.v1.DeleteExplanationRequest.job_id": _NAME,
    "sagittal.v1.RetryExplanationRequest.job_id": _NAME,
    "sagittal.v1.ScoreRegionsRequest.job_id": _NAME,
    "sagittal.v1.ListExplanationsRequest.page_token": _TOKEN,
    "sagittal.v1.ListExplanationsRequest.model": _NAME,
    "sagittal.v1.ListExplanationsRequest.failure_reason": _NAME,
    "sagittal.v1.ExplanationSpec.LabelsEntry.key": _NAME,
    "sagittal.v1.ExplanationSpec.LabelsEntry.value": _NAME,
    "sagittal.v1.JobFilter.model": _NAME,
    "sagittal.v1.JobFilter.failure_reason": _NAME,
    "sagittal.v1.JobFilter.method": _NAME,
    "sagittal.v1.JobFilter.request_id": MAX_REQUEST_ID,
    "sagittal.v1.JobFilter.LabelsEntry.key": _NAME,
    "sagittal.v1.JobFilter.LabelsEntry.value": _NAME,
    "sagittal.v1.CountExplanationsRequest.page_token": _TOKEN,
    "sagittal.v1.RegionSubject.model": _NAME,
    "sagittal.v1.RegionSubject.model_version": _NAME,
    "sagittal.v1.ListModelsRequest.page_token": _TOKEN,
    "sagittal.v1.GetModelRequest.name": _NAME,
    "sagittal.v1.GetModelRequest.version": _NAME,
    "sagittal.v1.UnregisterModelRequest.name": _NAME,
    "sagittal.v1.UnregisterModelRequest.version": _NAME,
    "sagittal.v1.LoadModelRequest.name": _NAME,
    "sagittal.v1.LoadModelRequest.version": _NAME,
    "sagittal.v1.UnloadModelRequest.name": _NAME,
    "sagittal.v1.UnloadModelRequest.version": _NAME,
    "sagittal.v1.SetCanaryRequest.name": _NAME,
    "sagittal.v1.SetCanaryRequest.version": _NAME,
    "sagittal.v1.Canary.rolled_back": _PATH,
    "sagittal.v1.PredictRequest.model": _NAME,
    "sagittal.v1.PredictRequest.model_version": _NAME,
    "sagittal.v1.Model.name": _NAME,
    "sagittal.v1.Model.version": _NAME,
    "sagittal.v1.Model.digest": _NAME,
    "sagittal.v1.Model.labels": MAX_LABEL,
    "sagittal.v1.Model.labels_from": _PATH,
    "sagittal.v1.Model.weights_digest": _NAME,
    "sagittal.v1.Model.TagsEntry.key": _NAME,
    "sagittal.v1.Model.TagsEntry.value": _NAME,
    "sagittal.v1.ModelSource.kind": _NAME,
    "sagittal.v1.Preprocessing.interpolation": _NAME,
    "sagittal.v1.Preprocessing.channel_order": _NAME,
    "sagittal.v1.Preprocessing.fit": _NAME,
    "sagittal.v1.Preprocessing.layout": _NAME,
    "sagittal.v1.Preprocessing.preset": _NAME,
    "sagittal.v1.Layers.spatial": _PATH,
    "sagittal.v1.Layers.features": _PATH,
    "sagittal.v1.DeviceWishes.kind": _NAME,
    "sagittal.v1.Capabilities.spatial_layers": _PATH,
    "sagittal.v1.Capabilities.feature_layers": _PATH,
    "sagittal.v1.Capabilities.weights_digest": _NAME,
    "sagittal.v1.Optimization.name": _NAME,
    "sagittal.v1.Optimization.detail": _SENTENCE,
    "sagittal.v1.WorkerModel.worker": _PATH,
    "sagittal.v1.WorkerModel.message": _SENTENCE,
    "sagittal.v1.WorkerModel.device": _NAME,
    "sagittal.v1.MethodDescription.name": _NAME,
    "sagittal.v1.MethodDescription.aliases": _NAME,
    "sagittal.v1.MethodDescription.field": _NAME,
    "sagittal.v1.MethodDescription.summary": _SENTENCE,
    "sagittal.v1.MethodDescription.unavailable": _SENTENCE,
    "sagittal.v1.ParameterDescription.name": _NAME,
    "sagittal.v1.ParameterDescription.type": _NAME,
    "sagittal.v1.ParameterDescription.choices": _PATH,
    "sagittal.v1.ParameterDescription.summary": _SENTENCE,
    "sagittal.v1.SelfCheck.name": _NAME,
    "sagittal.v1.SelfCheck.detail": _SENTENCE,
    "sagittal.v1.ConceptFit.method": _NAME,
    "sagittal.v1.FitConceptsSettings.name": _NAME,
    "sagittal.v1.FitConceptsSettings.model": _NAME,
    "sagittal.v1.FitConceptsSettings.model_version": _NAME,
    "sagittal.v1.FitConceptsSettings.layer": _PATH,
    "sagittal.v1.FitConceptsSettings.dataset": _NAME,
    "sagittal.v1.FitConceptsSettings.images_digest": _NAME,
    "sagittal.v1.FitConceptsSettings.request_id": MAX_REQUEST_ID,
    "sagittal.v1.FitConceptsSettings.annotations_digest": _NAME,
    "sagittal.v1.AnnotatedPart.name": MAX_NAME,
    "sagittal.v1.ListConceptSetsRequest.model": _NAME,
    "sagittal.v1.ListConceptSetsRequest.page_token": _TOKEN,
    "sagittal.v1.GetConceptSetRequest.model": _NAME,
    "sagittal.v1.GetConceptSetRequest.name": _NAME,
    "sagittal.v1.UpdateConceptSetRequest.model": _NAME,
    "sagittal.v1.UpdateConceptSetRequest.name": _NAME,
    "sagittal.v1.ConceptChange.rename": _NAME,
    "sagittal.v1.DeleteConceptSetRequest.model": _NAME,
    "sagittal.v1.DeleteConceptSetRequest.name": _NAME,
    "sagittal.v1.CreateBatchRequest.name": _NAME,
    "sagittal.v1.AddBatchItemsRequest.batch": _NAME,
    "sagittal.v1.AddBatchItemsRequest.key": MAX_ITEM_KEY,
    "sagittal.v1.UnreadableItem.message": _PATH,
    "sagittal.v1.GetBatchRequest.name": _NAME,
    "sagittal.v1.ListBatchesRequest.page_token": _TOKEN,
    "sagittal.v1.PauseBatchRequest.name": _NAME,
    "sagittal.v1.ResumeBatchRequest.name": _NAME,
    "sagittal.v1.CancelBatchRequest.name": _NAME,
    "sagittal.v1.ListBatchItemsRequest.name": _NAME,
    "sagittal.v1.ListBatchItemsRequest.page_token": _TOKEN,
    "sagittal.v1.RetryBatchItemsRequest.name": _NAME,
    "sagittal.v1.RetryBatchItemsRequest.keys": MAX_ITEM_KEY,
    "sagittal.v1.DeleteBatchRequest.name": _NAME,
    "google.protobuf.FieldMask.paths": _NAME,
    "grpc.health.v1.HealthCheckRequest.service": _NAME,
}
"""Maximum characters of each text field; for a list, of each element."""

ELEMENTS: Mapping[str, int] = {
    "sagittal.v1.Tensor.shape": MAX_DIMENSIONS,
    "sagittal.v1.Metrics.boxes": MAX_BOXES,
    "sagittal.v1.RobustnessTest.images": MAX_BACKGROUNDS,
    "sagittal.v1.ListExplanationsRequest.states": 64,
    "sagittal.v1.ExplanationSpec.labels": MAX_JOB_LABELS,
    "sagittal.v1.JobFilter.labels": MAX_JOB_LABELS,
    "sagittal.v1.JobFilter.states": 64,
    "sagittal.v1.ScoreRegionsRequest.sets": MAX_SETS,
    "sagittal.v1.PatchSet.patches": MAX_GRID**2,
    "sagittal.v1.Preprocessing.mean": 3,
    "sagittal.v1.Preprocessing.std": 3,
    "sagittal.v1.Model.labels": MAX_LABELS,
    "sagittal.v1.Model.tags": 256,
    "sagittal.v1.Model.workers": 10_000,
    "sagittal.v1.Model.methods": 256,
    "sagittal.v1.Model.checks": 256,
    "sagittal.v1.Capabilities.spatial_layers": 10_000,
    "sagittal.v1.Capabilities.feature_layers": 10_000,
    "sagittal.v1.Capabilities.optimizations": 256,
    "sagittal.v1.MethodDescription.parameters": 256,
    "sagittal.v1.MethodDescription.aliases": 16,
    "sagittal.v1.ParameterDescription.choices": 10_000,
    "sagittal.v1.FitConceptsSettings.targets": _MAX_TARGETS,
    "sagittal.v1.FitConceptsRequest.annotated_parts": MAX_PARTS,
    "sagittal.v1.UpdateConceptSetRequest.changes": MAX_CHANGES,
    "sagittal.v1.ListBatchItemsRequest.states": 64,
    "sagittal.v1.RetryBatchItemsRequest.keys": 1_000,
    "google.protobuf.FieldMask.paths": 64,
}
"""Maximum elements of each list, and pairs of each map."""

BYTES = frozenset({"sagittal.v1.Image.encoded", "sagittal.v1.Tensor.data"})
"""Bytes fields. `ImageLimits`, the tensor's shape and the size limit of a message bound these."""

WHOLE: Mapping[str, int] = {
    "google.protobuf.Struct": MAX_STRUCT_BYTES,
    "google.protobuf.Value": MAX_STRUCT_BYTES,
}
"""Maximum serialized bytes of messages that can nest to any depth."""


def check_bounds(request: Message) -> None:
    """Raises InvalidRequest, naming the field, if a text, list or structure of a request is too long."""
    _check(request, "", _Budget())


class _Budget:
    """Remaining number of texts and messages that the lists of a request may hold."""

    left = MAX_ELEMENTS

    def spend(self, count: int, path: str) -> None:
        self.left -= count
        if self.left < 0:
            text = f"{path}: the lists of the request have more than {MAX_ELEMENTS:,} elements together; send fewer"
            raise InvalidRequest(text, field=path)


def _check(message: Message, path: str, budget: _Budget) -> None:
    checked = _checked_fields(message.DESCRIPTOR)
    for field, value in message.ListFields():
        if field.name in checked:
            _check_field(field, value, f"{path}{field.name}", budget)


def _check_field(field: FieldDescriptor, value: Any, path: str, budget: _Budget) -> None:
    if field.is_repeated:
        if len(value) > (most := ELEMENTS[field.full_name]):
            raise InvalidRequest(f"{path} has {len(value):,} elements; give at most {most:,}", field=path)
        _check_elements(field, value, path, budget)
    elif field.message_type is None:
        _check_text(field, value, path)
    elif (most := WHOLE.get(field.message_type.full_name, 0)) == 0:
        _check(value, f"{path}.", budget)
    elif (size := value.ByteSize()) > most:
        raise InvalidRequest(f"{path} has {size:,} bytes; give at most {most:,}", field=path)


def _check_elements(field: FieldDescriptor, values: Any, path: str, budget: _Budget) -> None:
    kind = field.message_type
    if kind is None and field.type != FieldDescriptor.TYPE_STRING:
        return  # numbers
    budget.spend(len(values), path)
    if kind is None:
        for index, each in enumerate(values):
            _check_text(field, each, f"{path}[{index}]")
    elif kind.GetOptions().map_entry:
        for name, each in values.items():
            _check_text(kind.fields_by_name["key"], name, path)
            _check_text(kind.fields_by_name["value"], each, path)
    else:
        for index, each in enumerate(values):
            _check(each, f"{path}[{index}].", budget)


def _check_text(field: FieldDescriptor, value: str, path: str) -> None:
    if len(value) > (most := CHARACTERS[field.full_name]):
        raise InvalidRequest(f"{path} has {len(value):,} characters; give at most {most:,}", field=path)


@cache
def _checked_fields(message: Descriptor) -> frozenset[str]:
    """Returns the names of the fields whose length is checked: texts, lists and messages."""
    return frozenset(
        field.name
        for field in message.fields
        if field.is_repeated or field.type == FieldDescriptor.TYPE_STRING or field.message_type is not None
    )
