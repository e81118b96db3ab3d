"""Every RPC of every service on a real server over a queue on the embedded Valkey, with a worker at work.

Whatever a caller sends, the answer comes, is an expected one, carries a reason, and names a field that exists. It costs
no more memory, time of the event loop, or memory and time of Redis than a request of its size may (`oracles`), no
background task fails of it, and the next job of another tenant is answered.
"""

import asyncio
import hashlib
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import redis
import structlog
from concept_support import Concepts, a_set
from embedded_queue import Queue, own_settings
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from integration.service.support import Run, Stack, explain_at_once, lamp, picture, quick_settings, running, spec

from fuzzing.campaign import Outcome
from fuzzing.images import bombs
from fuzzing.messages import Words, messages, nearly
from fuzzing.oracles import MEBI, LoopMeter, Oracles
from sagittal.core.jobs import JobKind
from sagittal.v1 import (
    batch_service_pb2,
    concept_service_pb2,
    explanation_pb2,
    explanation_service_pb2,
    explanation_service_pb2_grpc,
    model_pb2,
    model_service_pb2,
)

#: Time after which a call counts as hanging, in seconds.
PATIENCE = 90

#: Streams that last for as long as their caller stays, and how long that is here, in seconds.
ENDLESS, STAY = frozenset({"WatchJobs"}), 1.0

#: Time that the service, and torch, may take to start, in seconds: the machine may be busy.
STARTING = 600

#: Inputs for an RPC in a round.
ROUND = 60

#: Bytes that a request may have; gRPC itself refuses more than `MAX_MESSAGE_BYTES`.
MAX_REQUEST = 31 * MEBI

#: Bytes that the queue may store for the service that is fuzzed.
STORED_BYTES = 64 * MEBI

#: Memory that the service and its caller may hold more than at the start, in bytes, whatever was sent before.
HELD_BYTES = 768 * MEBI

#: Bearer tokens of who fuzzes, and of the neighbour.
FUZZER, NEIGHBOUR = ({"authorization": f"Bearer {name}"} for name in ("fuzzer", "neighbour"))

RPCS: tuple[MethodDescriptor, ...] = tuple(
    method
    for file in (explanation_service_pb2, model_service_pb2, concept_service_pb2, batch_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)

#: Answers that mean that something went wrong in the service, not in the request.
FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)


@dataclass(frozen=True, slots=True)
class Server:
    """A service that is there to be fuzzed."""

    channel: grpc.Channel
    words: Words
    oracles: Oracles
    stack: Stack

    def call(self, rpc: MethodDescriptor, request: bytes) -> None:
        """Calls an RPC with a serialized request, and holds the answer, and what it costs, to what is promised."""
        with self.oracles.watch(rpc.full_name, len(request)):
            self._call(rpc, request)

    def check_neighbour(self) -> None:
        """Holds the service to what it promises another tenant, whose next job is answered, and its operator."""
        _register(self.stack)
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(self.channel)
        asked = explanation_service_pb2.ExplainRequest(spec=spec(seed=next(_SEEDS)))
        events = [answer.event for answer in stub.Explain(asked, timeout=PATIENCE, metadata=tuple(NEIGHBOUR.items()))]
        assert events[-1].HasField("completed"), f"a neighbour's job ended otherwise: {events[-1]}"
        assert _failures(self.stack) == 0, "a background task of the service failed"
        stored = self.oracles.redis.info("memory")["used_memory"]
        assert stored < 3 * STORED_BYTES, f"Redis holds {stored:,} bytes, and {STORED_BYTES:,} may be stored"
        held = self.oracles.held()
        assert held < HELD_BYTES, f"the service and its caller hold {held:,} bytes more than at the start"

    def _call(self, rpc: MethodDescriptor, request: bytes) -> None:
        began = time.monotonic()
        try:
            for event in self._answers(rpc, request):
                _check_event(event, rpc)
        except grpc.RpcError as error:
            if rpc.name in ENDLESS and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return  # the caller left
            assert error.code() not in FAULTS, f"{rpc.full_name}: {error.code().name}: {error.details()}"
            assert time.monotonic() - began < PATIENCE, f"{rpc.full_name} gave no answer within {PATIENCE} s"
            _check_refusal(error, rpc)

    def _answers(self, rpc: MethodDescriptor, request: bytes) -> Iterable[Message]:
        kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
        call = getattr(self.channel, kind)(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            response_deserializer=GetMessageClass(rpc.output_type).FromString,
        )
        asked = iter([request]) if rpc.client_streaming else request
        timeout = STAY if rpc.name in ENDLESS else PATIENCE
        answer = call(asked, timeout=timeout, metadata=tuple(FUZZER.items()))
        return answer if rpc.server_streaming else [answer]


#: Seeds of the neighbour's jobs, so that none is answered from memory.
_SEEDS = itertools.count(10**6)


def _check_refusal(error: Any, rpc: MethodDescriptor) -> None:
    trailers = dict(error.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailers, f"{rpc.full_name}: {error.code().name} without details"
    _check_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]), rpc)


def _check_event(answer: Message, rpc: MethodDescriptor) -> None:
    """Holds the failure that an event of a stream may carry to the same as a refused call's."""
    event = getattr(answer, "event", None)
    if isinstance(event, explanation_pb2.ExplanationEvent) and event.HasField("failed"):
        _check_status(event.failed, rpc)


def _check_status(status: status_pb2.Status, rpc: MethodDescriptor) -> None:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert any(detail.Unpack(info) for detail in status.details), f"{rpc.full_name}: no reason: {status.message}"
    assert status.message
    assert len(status.message) < 4000, "an error repeats the request"
    named = any(detail.Unpack(bad) for detail in status.details)
    if status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "cannot be parsed: " not in status.message:
        assert named, f"{rpc.full_name}: no field is named: {status.message}"
    for violation in bad.field_violations:
        assert exists(violation.field, rpc.input_type), f"{rpc.full_name} has no field {violation.field}"


def exists(path: str, kind: Descriptor) -> bool:
    """Whether a message has a field (or oneof) of this path, as `boxes[3].left`; a Struct and a map have any key."""
    name, _, rest = path.partition(".")
    if name in kind.oneofs_by_name:
        return not rest
    field = kind.fields_by_name.get(name.partition("[")[0].partition("=")[0])
    if field is None or not rest:
        return field is not None
    if field.message_type is None:
        return False
    if field.message_type.GetOptions().map_entry:
        return "[" not in rest
    return field.message_type is struct_pb2.Struct.DESCRIPTOR or exists(rest, field.message_type)


def requests(rpc: MethodDescriptor, words: Words) -> st.SearchStrategy[bytes]:
    """Returns requests of an RPC: of any fields, valid but for one, and bytes that are no message."""
    kind = GetMessageClass(rpc.input_type)
    some = [messages(kind, words), *(nearly(valid, words) for valid in _valid(kind))]
    whole = st.one_of(some).map(lambda message: message.SerializeToString())
    return st.one_of(whole, whole, whole, st.binary(max_size=99))


def _valid(kind: type[Message]) -> Iterator[Message]:
    fields = kind.DESCRIPTOR.fields_by_name
    if kind is batch_service_pb2.CreateBatchRequest:
        yield kind(name="1", spec=explanation_pb2.ExplanationSpec(model="lamp"))
        return
    if kind is batch_service_pb2.AddBatchItemsRequest:
        yield kind(batch="1", key="1", spec=explanation_pb2.ExplanationSpec(image=picture()))
        yield kind(batch="1", key="2", unreadable=batch_service_pb2.UnreadableItem(message="gone"))
        return
    if "spec" in fields and fields["spec"].message_type is explanation_pb2.ExplanationSpec.DESCRIPTOR:
        for seed_ in range(3):
            yield kind(spec=spec(seed=seed_, request_id="same" if seed_ else ""))
    if kind is model_service_pb2.PredictRequest:
        yield kind(model="lamp", image=picture(), top=2)
    if kind is explanation_service_pb2.ScoreRegionsRequest:
        subject = explanation_service_pb2.RegionSubject(model="lamp", image=picture())
        yield kind(image=subject, sets=[explanation_pb2.PatchSet(grid=4, patches=[1, 2])])


@contextmanager
def served() -> Iterator[Server]:
    """A service in a thread of its own, with every method of the product in its catalogue and jobs in every state."""
    ports: queue.Queue[tuple[Stack, list[str]] | BaseException] = queue.Queue()
    loop, done, meter = asyncio.new_event_loop(), asyncio.Event(), LoopMeter()
    tenants = {"fuzzer": ["explain", "admin"], "neighbour": ["explain"]}
    tokens = {
        hashlib.sha256(name.encode()).hexdigest(): {"tenant": name, "roles": roles} for name, roles in tenants.items()
    }
    temporary = tempfile.TemporaryDirectory()
    directory = Path(temporary.name)

    async def serve() -> None:
        queue = Queue(own_settings(max_stored_bytes=STORED_BYTES, image_retention_seconds=10, retention_seconds=60))
        Concepts(queue.settings, directory).seed("fuzzer", a_set("set", "lamp"))
        found = quick_settings(tokens=tokens, model_refresh=0.05, concepts={"directory": directory})
        async with running(found, queue) as stack:
            _register(stack)
            ids = await _jobs(stack)
            measuring = asyncio.create_task(meter.run())
            async with stack.worker(_answer).at_work():
                ports.put((stack, ids))
                await done.wait()
            measuring.cancel()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            ports.put(error)

    thread = threading.Thread(target=run, name="fuzzed-service")
    thread.start()
    try:
        started = ports.get(timeout=STARTING)
        if isinstance(started, BaseException):
            raise started
        stack, ids = started
        unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with (
            grpc.insecure_channel(f"127.0.0.1:{stack.port}", options=unbounded) as channel,
            redis.Redis.from_url(stack.queue.settings.url) as client,
        ):
            server = Server(channel, _words(ids), Oracles(meter, client), stack)
            server.check_neighbour()  # whatever is made once is there
            yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        loop.close()
        temporary.cleanup()


def _failures(stack: Stack) -> float:
    samples = [sample for metric in stack.metrics.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == "sagittal_background_failures_total")


def _register(stack: Stack) -> None:
    """Registers the model anew, which whoever fuzzes may have changed or removed."""
    stack.registry.lose_everything()
    stack.registry.workers.publish(_catalogued())
    ready = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY)
    stack.registry.workers.announce("scripted", [("lamp", "1", ready)], ttl=86_400)


def _catalogued() -> model_pb2.Model:
    """Returns the model of the tests with the methods that the workers have."""
    from fuzzing.jobs import DESCRIBED

    model = lamp()
    del model.methods[:]
    model.methods.extend(DESCRIBED.methods)
    return model


def _answer(run: Run) -> None:
    """A script: what was asked for, at once."""
    if run.lease.job.kind is JobKind.REGIONS:
        sets = explanation_service_pb2.ScoreRegionsRequest.FromString(run.lease.request).sets
        full = explanation_pb2.ClassScore(index=1, label="on", score=0.9)
        scores, top = [0.5] * len(sets), [full] * len(sets)
        run.send(region_scores=explanation_pb2.RegionScores(full=full, scores=scores, top=top))
        run.settle(completed=explanation_pb2.Completed(model_digest="d" * 64))
    else:
        explain_at_once(run)


async def _jobs(stack: Stack) -> list[str]:
    stub = explanation_service_pb2_grpc.ExplanationServiceStub(stack.channel)
    found, metadata = [], tuple(FUZZER.items())
    for number in range(3):
        asked = explanation_service_pb2.SubmitExplanationRequest(spec=spec(seed=100 + number))
        answer = await stub.SubmitExplanation(asked, metadata=metadata)
        found.append(answer.explanation.job_id)
    cancelled = explanation_service_pb2.CancelExplanationRequest(job_id=found[0])
    await stub.CancelExplanation(cancelled, metadata=metadata)
    return found


def _words(job_ids: list[str]) -> Words:
    files = st.sampled_from(
        [picture().encoded, picture(40, 30).encoded, b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", *bombs()]
    )
    return {
        "job_id": st.sampled_from(job_ids),
        "model": st.just("lamp"),
        "name": st.sampled_from(["lamp", "igos++", "mse", "rise", "1", "on", "set"]),
        "model_version": st.just("1"),
        "version": st.just("1"),
        "batch": st.just("1"),
        "label": st.sampled_from(["on", "off"]),
        "encoded": files,
        "sagittal.v1.Image": st.just(picture()),
        "patches": st.integers(0, 15),
        "grid": st.integers(3, 14),
        "page_size": st.integers(0, 1000),
        "page_token": st.sampled_from(["0", "1", "a:b", "é"]),
    }


def fuzz_rpcs(seconds: float) -> Outcome:
    """Calls every RPC in turn with new requests until the time is up."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began, counter = time.monotonic(), [0]
    fault = ""
    with served() as server:
        number = 0
        while not fault and time.monotonic() - began < seconds:
            fault = _round(server, number, counter, began + seconds)
            number += 1
    return Outcome(target="rpcs", seconds=time.monotonic() - began, inputs=counter[0], edges=0, fault=fault)


def _round(server: Server, number: int, counter: list[int], until: float) -> str:
    for rpc in RPCS:
        if time.monotonic() > until:
            return ""
        try:
            check_rpc(server, rpc, ROUND, number, lambda: counter.__setitem__(0, counter[0] + 1))
            server.check_neighbour()
        except (AssertionError, grpc.RpcError) as error:
            return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return ""


def check_rpc(
    server: Server, rpc: MethodDescriptor, inputs: int, number: int = 0, count: Callable[[], None] = lambda: None
) -> None:
    """Calls an RPC with so many requests, drawn anew for each number."""

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(rpc, server.words))
    def holds(request: bytes) -> None:
        assume(len(request) <= MAX_REQUEST)
        count()
        server.call(rpc, request)

    holds()
