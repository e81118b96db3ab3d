"""Values at the edges of their types are refused by name, never answered with INTERNAL."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import message_factory, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sagittal.core import bounds
from sagittal.core.errors import from_status
from sagittal.v1 import (
    batch_service_pb2,
    batch_service_pb2_grpc,
    concept_service_pb2,
    concept_service_pb2_grpc,
    explanation_pb2,
    explanation_service_pb2_grpc,
    method_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
)
from sagittal.v1 import explanation_service_pb2 as api

from .support import Stack, spec

SERVICES = {
    api: explanation_service_pb2_grpc,
    model_service_pb2: model_service_pb2_grpc,
    concept_service_pb2: concept_service_pb2_grpc,
}


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    """Returns the code of a refusal and the field that it names."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    violations = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(violations)
    return caught.value.code(), violations.field_violations[0].field


@pytest.mark.parametrize("after", [2**53, 2**63, 2**64 - 1])
async def test_a_sequence_number_that_no_log_has_is_refused(stack: Stack, after: int) -> None:
    job = (await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec()))).explanation
    call = stack.explanations.WatchExplanation(
        api.WatchExplanationRequest(job_id=job.job_id, after_sequence=after)
    ).read()
    assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "after_sequence")


async def test_a_batch_of_more_items_than_can_be_counted_is_refused_by_its_field(stack: Stack) -> None:
    batches = batch_service_pb2_grpc.BatchServiceStub(stack.channel)
    asked = batch_service_pb2.CreateBatchRequest(name="b", spec={"model": "lamp"}, expected_items=2**60)
    assert await refused(batches.CreateBatch(asked)) == (grpc.StatusCode.INVALID_ARGUMENT, "expected_items")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_custom_parameter_that_is_no_number_is_refused(stack: Stack, number: float) -> None:
    parameters = struct_pb2.Struct(fields={"mask_size": struct_pb2.Value(number_value=number)})
    method = method_pb2.Method(custom=method_pb2.CustomMethod(name="glow", parameters=parameters))
    call = stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(method=method)))
    assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "spec.method.custom.parameters.mask_size")


def too_long(message: Message, path: str = "", within: tuple[Descriptor, ...] = ()) -> Iterator[tuple[str, int]]:
    """Yields the path of each text, list and structure in a message that is in no list, and a size past its bound."""
    for field in message.DESCRIPTOR.fields:
        kind, where = field.message_type, f"{path}{field.name}"
        if field.full_name in bounds.ELEMENTS:
            yield where, bounds.ELEMENTS[field.full_name] + 1
        elif field.full_name in bounds.CHARACTERS:
            yield where, bounds.CHARACTERS[field.full_name] + 1
        elif kind is not None and kind.full_name in bounds.WHOLE:
            yield where, bounds.WHOLE[kind.full_name] + 1
        elif kind is not None and kind not in within:
            inner = message_factory.GetMessageClass(kind)()
            yield from too_long(inner, f"{where}.", (*within, kind))


def lengthen(message: Any, path: str, size: int) -> None:
    """Gives one field of a message this size."""
    *parents, last = path.split(".")
    for name in parents:
        message = getattr(message, name)
        message.SetInParent()
    field = message.DESCRIPTOR.fields_by_name[last]
    kind = field.message_type.full_name if field.message_type is not None else ""
    if kind == "google.protobuf.Struct":
        getattr(message, last).update({"x": "x" * size})
    elif not field.is_repeated:
        setattr(message, last, "x" * size)
    elif kind and field.message_type.GetOptions().map_entry:
        getattr(message, last).update({str(number): "x" for number in range(size)})
    elif kind:
        for _ in range(size):
            getattr(message, last).add()
    else:
        getattr(message, last).extend(["x" if field.type == FieldDescriptor.TYPE_STRING else 0] * size)


async def answer_to(stack: Stack, stubs: Any, service: str, rpc: str, request: Message) -> status_pb2.Status:
    """Returns the status that a call ends with, or that ExplainMany's one event carries."""
    call = getattr(getattr(stubs, f"{service}Stub")(stack.channel), rpc)

    async def once() -> AsyncIterator[Message]:
        yield request

    try:
        answer = call(once() if rpc in ("ExplainMany", "FitConcepts") else request)
        found = [each async for each in answer] if hasattr(answer, "__aiter__") else await answer
        assert rpc == "ExplainMany", found
        return found[0].event.failed
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        return status_pb2.Status.FromString(details)


async def test_a_field_past_its_bound_is_refused_by_name_in_every_rpc(stack: Stack) -> None:
    tried = 0
    for module, stubs in SERVICES.items():
        for service in module.DESCRIPTOR.services_by_name.values():
            for rpc in service.methods:
                kind = message_factory.GetMessageClass(rpc.input_type)
                for path, size in too_long(kind()):
                    request = kind()
                    lengthen(request, path, size)
                    error = from_status(await answer_to(stack, stubs, service.name, rpc.name, request))
                    assert error.field.partition("[")[0] == path, f"{rpc.name}: {path}"
                    assert "give at most" in error.message
                    assert len(error.message) < 200
                    tried += 1
    assert tried > 100


async def test_a_label_of_megabytes_is_refused_at_once_and_shown_short(stack: Stack) -> None:
    request = api.SubmitExplanationRequest(spec=spec(target=explanation_pb2.Target(label="x" * 30_000_000)))
    with structlog.testing.capture_logs() as logs:
        assert await refused(stack.explanations.SubmitExplanation(request)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "spec.target.label",
        )
    assert all(len(str(line)) < 2_000 for line in logs)


@pytest.mark.parametrize("label", ["灯" * 1_000, "\x1b" * 1_024, "x" * 1_024])
async def test_the_longest_label_is_refused_with_a_status_that_arrives(stack: Stack, label: str) -> None:
    request = api.SubmitExplanationRequest(spec=spec(target=explanation_pb2.Target(label=label)))
    assert await refused(stack.explanations.SubmitExplanation(request)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "spec.target.label",
    )
