"""Every text and every list of every request has a bound."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from sagittal.core import bounds
from sagittal.core.bounds import check_bounds
from sagittal.core.errors import InvalidRequest
from sagittal.v1 import (
    batch_service_pb2,
    concept_service_pb2,
    explanation_pb2,
    explanation_service_pb2,
    method_pb2,
    model_pb2,
    model_service_pb2,
)


def requests() -> list[Descriptor]:
    return [
        rpc.input_type
        for module in (explanation_service_pb2, model_service_pb2, concept_service_pb2, batch_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    ]


def fields_with_a_length() -> set[FieldDescriptor]:
    seen: set[Descriptor] = set()
    found: set[FieldDescriptor] = set()

    def visit(message: Descriptor) -> None:
        if message in seen or message.full_name in bounds.WHOLE:
            return
        seen.add(message)
        for field in message.fields:
            if field.is_repeated or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                found.add(field)
            if field.message_type is not None:
                visit(field.message_type)

    for request in requests():
        visit(request)
    return found


def test_every_field_with_a_length_has_a_bound_and_every_bound_a_field() -> None:
    fields = fields_with_a_length()
    texts = {field.full_name for field in fields if field.type == FieldDescriptor.TYPE_STRING}
    lists = {field.full_name for field in fields if field.is_repeated}
    data = {field.full_name for field in fields if field.type == FieldDescriptor.TYPE_BYTES}
    assert {name for name in bounds.CHARACTERS if name.startswith("grpc.")} | texts == bounds.CHARACTERS.keys()
    assert lists == bounds.ELEMENTS.keys()
    assert data == bounds.BYTES


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (explanation_service_pb2.WatchExplanationRequest(job_id="x" * 129), "job_id"),
        (
            explanation_service_pb2.ExplainRequest(
                spec=explanation_pb2.ExplanationSpec(target=explanation_pb2.Target(label="x" * 20_000_000))
            ),
            "spec.target.label",
        ),
        (
            explanation_service_pb2.ScoreRegionsRequest(sets=[explanation_pb2.PatchSet(patches=range(197))]),
            "sets[0].patches",
        ),
        (model_service_pb2.RegisterModelRequest(model=model_pb2.Model(labels=["a", "x" * 1_025])), "model.labels[1]"),
        (model_service_pb2.RegisterModelRequest(model=model_pb2.Model(tags={"x" * 200: "a"})), "model.tags"),
        (concept_service_pb2.FitConceptsRequest(annotated_parts=[{}] * 257), "annotated_parts"),  # type: ignore[list-item]
    ],
)
def test_a_field_past_its_bound_is_named_in_few_words(request_: Message, field: str) -> None:
    with pytest.raises(InvalidRequest, match="give at most") as caught:
        check_bounds(request_)
    assert caught.value.field == field
    assert len(str(caught.value)) < 200


def test_a_structure_is_bounded_as_a_whole() -> None:
    custom = method_pb2.CustomMethod(name="glow")
    custom.parameters.update({"deep": [[["x" * 100] * 10] * 10] * 10})
    request = explanation_service_pb2.SubmitExplanationRequest()
    request.spec.method.custom.CopyFrom(custom)
    with pytest.raises(InvalidRequest, match="bytes") as caught:
        check_bounds(request)
    assert caught.value.field == "spec.method.custom.parameters"


def test_the_lists_of_a_request_are_bounded_together() -> None:
    parameter = model_pb2.ParameterDescription(choices=["x"] * 9_999)
    methods = [model_pb2.MethodDescription(parameters=[parameter] * 4)] * 4
    with pytest.raises(InvalidRequest, match="together"):
        check_bounds(model_service_pb2.RegisterModelRequest(model=model_pb2.Model(methods=methods)))


def test_a_request_within_its_bounds_passes() -> None:
    request = explanation_service_pb2.ScoreRegionsRequest(
        job_id="a" * 32, sets=[explanation_pb2.PatchSet(grid=14, patches=range(196))] * 1_000
    )
    check_bounds(request)
