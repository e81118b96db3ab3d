"""Whatever a caller sends, the answer is an expected one: random messages made from the descriptors, on every RPC."""

import asyncio
import random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sagittal.v1 import concept_service_pb2, explanation_service_pb2, model_service_pb2

from .support import Stack, spec

#: Messages for each RPC.
ROUNDS = 60

SERVICES = [
    explanation_service_pb2.DESCRIPTOR.services_by_name["ExplanationService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    concept_service_pb2.DESCRIPTOR.services_by_name["ConceptService"],
]

TEXTS = ["", "lamp", "on", "1", "0" * 32, "x" * 200, "\u0000", "ünï", "../../etc/passwd", "igos++"]
BYTES = [b"", b"\x00" * 12, b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"\x01" * 999]
WHOLE = [0, 1, 2, 3, 28, 224, 999, 2**31 - 1]
DECIMAL = [0.0, -1.0, 0.5, 1e30, float("nan"), float("inf"), float("-inf")]


def random_message(kind: type[Message], rng: random.Random, depth: int = 0) -> Message:
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5:
            fill(message, field, rng, depth)
    return message


def fill(message: Message, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    if field.message_type is not None and (depth > 4 or field.message_type.GetOptions().map_entry):
        return
    if field.is_repeated:
        getattr(message, field.name).extend(value(field, rng, depth) for _ in range(rng.randrange(3)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value(field, rng, depth))
    else:
        setattr(message, field.name, value(field, rng, depth))


def value(field: FieldDescriptor, rng: random.Random, depth: int) -> Any:
    if field.message_type is not None:
        return random_message(GetMessageClass(field.message_type), rng, depth + 1)
    if field.enum_type is not None:
        return rng.choice([*field.enum_type.values_by_number, 77])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(DECIMAL)
    return rng.random() < 0.5 if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else rng.choice(WHOLE)


def nearly_right(request: Message, rng: random.Random) -> Message:
    """Makes the specification, where there is one, right but for one field."""
    if "spec" in request.DESCRIPTOR.fields_by_name:
        given = request.spec  # type: ignore[attr-defined]
        wrong = random_message(type(given), rng)
        given.CopyFrom(spec())
        field = rng.choice(list(given.DESCRIPTOR.fields))
        given.ClearField(field.name)
        if not field.has_presence or wrong.HasField(field.name):
            part = type(given)()
            part.CopyFrom(wrong)
            for other in part.DESCRIPTOR.fields:
                if other.name != field.name:
                    part.ClearField(other.name)
            given.MergeFrom(part)
    return request


async def answer(channel: grpc.aio.Channel, service: ServiceDescriptor, name: str, request: Message) -> grpc.StatusCode:
    method = service.methods_by_name[name]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(
        f"/{service.full_name}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(iter([request]) if method.client_streaming else request, timeout=10)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("service", "name"), [(service, method.name) for service in SERVICES for method in service.methods]
)
async def test_no_message_gets_through_as_a_bug(stack: Stack, service: ServiceDescriptor, name: str) -> None:
    rng = random.Random(name)
    kind = GetMessageClass(service.methods_by_name[name].input_type)
    requests = [random_message(kind, rng) for _ in range(ROUNDS)]
    requests += [nearly_right(random_message(kind, rng), rng) for _ in range(ROUNDS)]
    async with stack.worker().at_work():
        codes = await asyncio.gather(*(answer(stack.channel, service, name, request) for request in requests))
    assert not {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED} & set(codes)
