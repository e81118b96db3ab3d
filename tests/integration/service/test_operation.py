"""What an operator relies on: health, reflection, limits, metrics, tokens, TLS, draining."""

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from embedded_queue import Queue, own_settings
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sagittal.core.errors import Overloaded, StreamMoved, Unavailable, from_status
from sagittal.core.jobs import JobState
from sagittal.server.readiness import READY_SERVICES
from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import explanation_service_pb2_grpc, model_service_pb2, tensor_pb2

from .support import Stack, eventually, picture, quick_settings, running, spec

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
EXPLANATIONS = "sagittal.v1.ExplanationService"


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


async def health(stack: Stack, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(stack.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def until_health(stack: Stack, service: str, wanted: int) -> None:
    async def arrived() -> bool:
        return await health(stack, service) == wanted

    await eventually(arrived)


def submit(stack: Stack, **options: Any) -> Any:
    return stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec()), **options)


async def submit_spec(stack: Stack, given: Any) -> Any:
    return await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=given))


async def test_the_service_is_ready_while_the_queue_answers_and_alive_always(stack: Stack) -> None:
    async def away() -> None:
        raise Unavailable("gone", retry_after=1)

    await until_health(stack, EXPLANATIONS, SERVING)
    answers, stack.queue.jobs.ping = stack.queue.jobs.ping, away  # type: ignore[method-assign]
    await until_health(stack, EXPLANATIONS, NOT_SERVING)
    for service in READY_SERVICES:
        await until_health(stack, service, NOT_SERVING)
    assert await health(stack, "") == SERVING
    assert stack.metric("sagittal_queue_up") == 0
    stack.queue.jobs.ping = answers  # type: ignore[method-assign]
    await until_health(stack, EXPLANATIONS, SERVING)
    assert stack.metric("sagittal_queue_up") == 1


async def test_reflection_lists_every_service(stack: Stack) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await anext(aiter(call))
    names = {service.name for service in answer.list_services_response.service}
    assert {EXPLANATIONS, *READY_SERVICES, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("detail", ["ErrorInfo", "BadRequest", "RetryInfo"])
async def test_reflection_describes_the_details_of_errors(stack: Stack, detail: str) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"google.rpc.{detail}")
    answer = await anext(aiter(stub.ServerReflectionInfo(iter([asked]))))
    files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    assert detail in {message.name for file in files if file.package == "google.rpc" for message in file.message_type}


async def test_a_message_over_the_limit_is_refused_with_the_limit() -> None:
    async with running(quick_settings(connections={"max_message_bytes": 2**20})) as stack:
        large = spec(image=tensor_pb2.Image(encoded=bytes(2**20 + 1)))
        error = await refusal(stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=large)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (error.details() or "")
        assert str(2**20) in (error.details() or "")


async def test_a_bug_shows_an_identifier_to_the_caller_and_its_trace_to_the_log(stack: Stack) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    stack.queue.jobs.submit = broken  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        error = await refusal(submit(stack))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret detail" not in (error.details() or "")
    (line,) = [line for line in logs if line["event"] == "rpc-failed-unexpectedly"]
    assert line["exc_info"]
    assert line["incident"] in (error.details() or "")


async def test_neither_pictures_nor_tokens_are_logged() -> None:
    tokens = {hashlib.sha256(b"open sesame").hexdigest(): {"tenant": "ali"}}
    with structlog.testing.capture_logs() as logs:
        async with running(quick_settings(tokens=tokens)) as stack:
            await submit(stack, metadata=(("authorization", "Bearer open sesame"),))
            await refusal(submit(stack, metadata=(("authorization", "Bearer close sesame"),)))
    text = repr(logs)
    assert "job-accepted" in text
    assert "sesame" not in text
    assert "PNG" not in text


async def test_metrics_count_rpcs_jobs_and_refusals(stack: Stack) -> None:
    await submit(stack)
    await refusal(stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(model="nosuch"))))
    call = stack.explanations.Explain(api.ExplainRequest(spec=spec(seed=3)))
    await call.read()
    explain, submitted = f"{EXPLANATIONS}/Explain", f"{EXPLANATIONS}/SubmitExplanation"
    assert stack.metric("sagittal_streams_in_flight", rpc=explain) == 1
    call.cancel()
    await eventually(lambda: stack.metric("sagittal_rpcs_handled_total", rpc=explain, code="CANCELLED"))
    assert stack.metric("sagittal_streams_in_flight", rpc=explain) == 0
    assert stack.metric("sagittal_rpcs_started_total", rpc=submitted) == 2
    assert stack.metric("sagittal_rpcs_handled_total", rpc=submitted, code="OK") == 1
    assert stack.metric("sagittal_rpcs_handled_total", rpc=submitted, code="NOT_FOUND") == 1
    assert stack.metric("sagittal_rpc_seconds_count", rpc=submitted) == 2
    labels = {"model": "lamp", "method": "igos++", "lane": "interactive"}
    assert stack.metric("sagittal_jobs_accepted_total", **labels) == 2
    assert stack.metric("sagittal_jobs_rejected_total", reason="UNKNOWN_MODEL") == 1


async def test_metrics_show_the_queue(stack: Stack) -> None:
    await submit(stack)
    await eventually(lambda: stack.metric("sagittal_queue_depth", model="lamp", lane="interactive") == 1)
    await eventually(lambda: stack.metric("sagittal_queue_oldest_seconds", model="lamp", lane="interactive") > 0)


TOKENS = {
    hashlib.sha256(b"ann").hexdigest(): {"tenant": "ann"},
    hashlib.sha256(b"bob").hexdigest(): {"tenant": "bob", "roles": ["explain"]},
    hashlib.sha256(b"root").hexdigest(): {"tenant": "ann", "roles": ["admin"]},
}


def bearer(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, grpc.StatusCode.UNAUTHENTICATED),
        (bearer("eve"), grpc.StatusCode.UNAUTHENTICATED),
        ({"metadata": (("authorization", "Basic ann"),)}, grpc.StatusCode.UNAUTHENTICATED),
        (bearer("root"), grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_with_tokens_configured_only_their_bearers_are_served(
    options: dict[str, Any], code: grpc.StatusCode
) -> None:
    async with running(quick_settings(tokens=TOKENS)) as stack:
        assert (await refusal(submit(stack, **options))).code() == code
        assert await health(stack, "") == SERVING


async def test_who_guesses_tokens_must_wait_and_locks_nobody_out() -> None:
    logins = {"attempts": 3, "window": 3600, "refusal_delay": 0}
    async with running(quick_settings(tokens=TOKENS, logins=logins)) as stack:
        with structlog.testing.capture_logs() as logs:
            guesses = [await refusal(submit(stack, **bearer(f"guess-{number}"))) for number in range(5)]
            # not known from this address: a service that was just started knows no address
            for name in ("ann", "bob", "ann", "bob"):
                await submit(stack, **bearer(name))
            still = await refusal(submit(stack, **bearer("guess-5")))
        assert {error.code() for error in guesses} == {grpc.StatusCode.UNAUTHENTICATED}
        assert [details(error).retry_after is not None for error in guesses] == [False] * 3 + [True] * 2
        assert details(still).retry_after > 0
        assert [line["address"] for line in logs if line["event"] == "logins-limited"] == ["127.0.0.1"]
        assert await health(stack, "") == SERVING


@pytest.mark.parametrize("token", [bearer("guess"), {}], ids=["unknown", "none"])
async def test_the_refusal_of_who_must_wait_is_held_back_and_known_tokens_are_served(token: dict[str, Any]) -> None:
    logins = {"attempts": 1, "window": 3600, "refusal_delay": 60, "max_delayed": 1}
    async with running(quick_settings(tokens=TOKENS, logins=logins)) as stack:
        await refusal(submit(stack, **token))
        # at most one is held, so that holding them takes bounded memory: the other is refused at once
        calls = {asyncio.ensure_future(refusal(submit(stack, **token))) for _ in range(2)}
        (refused,), (held,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().code() == grpc.StatusCode.UNAUTHENTICATED
        await submit(stack, **bearer("ann"))
        assert not held.done()
        held.cancel()


async def test_admin_rpcs_want_the_admin_role() -> None:
    async with running(quick_settings(tokens=TOKENS)) as stack:
        request = model_service_pb2.LoadModelRequest(name="lamp")
        assert (await refusal(stack.models.LoadModel(request, **bearer("ann")))).code() == (
            grpc.StatusCode.PERMISSION_DENIED
        )
        assert await stack.models.LoadModel(request, **bearer("root"))


async def test_jobs_are_read_by_their_tenant_alone() -> None:
    async with running(quick_settings(tokens=TOKENS)) as stack:
        job_id = (await submit(stack, **bearer("ann"))).explanation.job_id
        get = api.GetExplanationRequest(job_id=job_id)
        assert (await stack.explanations.GetExplanation(get, **bearer("ann"))).explanation.job_id == job_id
        error = await refusal(stack.explanations.GetExplanation(get, **bearer("bob")))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        cancel = api.CancelExplanationRequest(job_id=job_id)
        assert (await refusal(stack.explanations.CancelExplanation(cancel, **bearer("bob")))).code() == error.code()
        listed = await stack.explanations.ListExplanations(api.ListExplanationsRequest(), **bearer("bob"))
        assert not listed.explanations


WITH_JOB_ID = [
    method
    for service in api.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if "job_id" in method.input_type.fields_by_name
]


@pytest.mark.parametrize("rpc", WITH_JOB_ID, ids=lambda rpc: rpc.name)
async def test_every_rpc_that_takes_a_job_finds_none_of_another_tenant(rpc: MethodDescriptor) -> None:
    tokens = {**TOKENS, hashlib.sha256(b"eve").hexdigest(): {"tenant": "eve", "roles": ["explain", "admin"]}}
    async with running(quick_settings(tokens=tokens)) as stack:
        job_id = (await submit(stack, **bearer("ann"))).explanation.job_id
        request = GetMessageClass(rpc.input_type)(job_id=job_id)
        if "sets" in rpc.input_type.fields_by_name:
            request.sets.add(grid=4, patches=[1])  # type: ignore[attr-defined]
        call = getattr(stack.explanations, rpc.name)(request, **bearer("eve"))
        error = await refusal(call.read() if rpc.server_streaming else call)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        nobodys = GetMessageClass(rpc.input_type)()
        nobodys.CopyFrom(request)
        nobodys.job_id = "0" * 32  # type: ignore[attr-defined]
        other = getattr(stack.explanations, rpc.name)(nobodys, **bearer("eve"))
        missing = await refusal(other.read() if rpc.server_streaming else other)
        assert (missing.details() or "").replace("0" * 32, job_id) == error.details(), "the two cannot be told apart"


async def test_a_large_picture_holds_up_nobody_elses_calls() -> None:
    async with running() as stack:
        large = asyncio.ensure_future(submit_spec(stack, spec(image=picture(8000, 8000))))
        meanwhile = 0
        while not large.done():
            await stack.explanations.ListExplanations(api.ListExplanationsRequest())
            meanwhile += 1
        await large
    assert meanwhile > 3, "calls were answered while the picture was read"


async def test_past_the_admission_bound_the_caller_is_told_when_to_come_again() -> None:
    queue = Queue(own_settings(max_queued={"interactive": 1, "batch": 1}))
    async with running(queue=queue) as stack:
        await submit(stack)
        another = api.SubmitExplanationRequest(spec=spec(seed=2))
        error = await refusal(stack.explanations.SubmitExplanation(another))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(details(error), Overloaded)
        assert details(error).retry_after > 0
        assert stack.metric("sagittal_jobs_rejected_total", reason="QUEUE_FULL") == 1
        await eventually(lambda: stack.metric("sagittal_tenant_refusals_total", tenant="default") == 1)
        many = stack.explanations.ExplainMany(iter([api.ExplainManyRequest(spec=spec(seed=3, request_id="many"))]))
        (refused,) = [response.event async for response in many]
        assert isinstance(from_status(refused.failed), Overloaded)
        assert stack.metric("sagittal_tenant_refusals_total", tenant="default") == 2


async def test_an_address_open_to_the_network_without_tokens_is_warned_of() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(quick_settings(listen=("0.0.0.0:0",))):
            pass
    assert "open-to-the-network" in [line["event"] for line in logs]


async def test_draining_moves_streams_and_leaves_their_jobs_alone() -> None:
    async with running() as stack:
        call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
        job_id = (await call.read()).event.job_id
        many = stack.explanations.ExplainMany(iter([api.ExplainManyRequest(spec=spec(seed=2, request_id="m"))]))
        await many.read()
        await stack.service.stop()
        for stream in (call, many):
            error = await refusal(stream.read())
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert isinstance(details(error), StreamMoved)
        jobs, _ = await stack.queue.jobs.list(limit=9, page_token="")
        assert {job.state for job in jobs} == {JobState.QUEUED}
        assert job_id in {job.job_id for job in jobs}


async def test_streams_in_this_process_also_have_the_time_of_the_drain() -> None:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has at most about 100 characters
        socket = f"{folder}/service.sock"

        async def connections_are_refused() -> bool:
            try:
                _, writer = await asyncio.open_unix_connection(socket)
            except OSError:
                return True
            writer.close()
            return False

        async with running(quick_settings(drain=600, listen=(f"unix://{socket}",))) as stack:
            channel: Any = stack.service.channel
            stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            call = stub.Explain(api.ExplainRequest(spec=spec()))
            assert (await anext(call)).event.job_id
            stopping = asyncio.create_task(stack.service.stop())
            await eventually(connections_are_refused)
            async with stack.worker().at_work():
                kinds = [response.event.WhichOneof("event") async for response in call]
            assert kinds[-1] == "completed"
            await stopping


async def test_a_stream_that_grows_old_is_moved_and_resumes_where_it_stopped() -> None:
    async with running(quick_settings(connections={"max_age_grace": 3.0})) as stack:
        # starts what reads images, so that the stream is accepted before it grows old
        await stack.explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec(seed=1)))
        call = stack.explanations.Explain(api.ExplainRequest(spec=spec()))
        accepted = (await call.read()).event
        assert isinstance(details(await refusal(call.read())), StreamMoved)
        async with stack.worker().at_work():
            watch = api.WatchExplanationRequest(job_id=accepted.job_id, after_sequence=accepted.sequence)
            events = [response.event async for response in stack.explanations.WatchExplanation(watch)]
        assert events[-1].HasField("completed")


@pytest.fixture
def authority() -> Any:
    return pytest.importorskip("trustme").CA()


def issue(authority: Any, directory: Path) -> dict[str, Path]:
    files = {name: directory / f"{name}.pem" for name in ("certificate", "key", "client_ca")}
    server = authority.issue_cert("localhost", "127.0.0.1")
    files["key"].write_bytes(server.private_key_pem.bytes())
    files["certificate"].write_bytes(b"".join(part.bytes() for part in server.cert_chain_pems))
    files["client_ca"].write_bytes(authority.cert_pem.bytes())
    return files


async def first_model(port: int, credentials: grpc.ChannelCredentials, seconds: float = 60.0) -> None:
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        await stub.ListExplanations(api.ListExplanationsRequest(), timeout=seconds)


async def test_tls_wants_the_clients_certificate_where_an_authority_is_set(authority: Any, tmp_path: Path) -> None:
    files = issue(authority, tmp_path)
    client = authority.issue_cert("client@example.org")
    key, chain = client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    root = authority.cert_pem.bytes()
    async with running(quick_settings(tls=files)) as stack:
        await first_model(stack.port, grpc.ssl_channel_credentials(root, key, chain))
        error = await refusal(first_model(stack.port, grpc.ssl_channel_credentials(root), seconds=5.0))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_renewed_certificate_is_taken_up_without_a_restart(authority: Any, tmp_path: Path) -> None:
    files = issue(authority, tmp_path)
    del files["client_ca"]
    renewed = type(authority)()
    async with running(quick_settings(tls=files)) as stack:
        await first_model(stack.port, grpc.ssl_channel_credentials(authority.cert_pem.bytes()))
        assert stack.metric("sagittal_certificate_expiry_seconds") > 0
        issue(renewed, tmp_path)
        await first_model(stack.port, grpc.ssl_channel_credentials(renewed.cert_pem.bytes()))


async def test_a_second_listener_answers_health_in_the_clear_and_tells_of_connections(
    authority: Any, tmp_path: Path
) -> None:
    files = issue(authority, tmp_path)
    async with (
        running(quick_settings(tls=files, admin_listen="127.0.0.1:0")) as stack,
        grpc.aio.insecure_channel(f"127.0.0.1:{stack.service.admin_port}") as channel,
    ):
        probe = health_pb2_grpc.HealthStub(channel)
        assert (await probe.Check(health_pb2.HealthCheckRequest())).status == SERVING
        servers = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest())
        assert servers.server
        jobs = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        refused = await refusal(jobs.ListExplanations(api.ListExplanationsRequest(), timeout=60))
        assert refused.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_probes_are_told_why_a_replica_is_not_ready(stack: Stack) -> None:
    async def away() -> None:
        raise Unavailable("gone", retry_after=1)

    await eventually(lambda: stack.service.ready() == "")
    assert stack.service.live() == ""
    stack.queue.jobs.ping = away  # type: ignore[method-assign]
    await eventually(lambda: "gone" in stack.service.ready())
    assert stack.service.live() == ""
