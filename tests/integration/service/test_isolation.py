"""A tenant that floods meets bounds of its own: it is refused by their names, and the calls of others go on."""

import asyncio
import hashlib
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sagittal.core.errors import Overloaded, from_status
from sagittal.core.jobs import NewJob
from sagittal.queue import turns
from sagittal.v1 import explanation_service_pb2 as api

from .http2 import END_HEADERS, HEADERS, connect, frame, header_block
from .support import Stack, eventually, quick_settings, running, spec

#: Far more than anything here takes, in seconds.
PATIENCE = 60

HOSTILE, OTHER = ((("authorization", f"Bearer {name}"),) for name in ("hostile", "other"))


def tenants(**calls: Any) -> Any:
    """Settings with two tenants and these bounds of calls."""
    tokens = {hashlib.sha256(name.encode()).hexdigest(): {"tenant": name} for name in ("hostile", "other")}
    return quick_settings(tokens=tokens, calls={"refusal_delay": 0.0} | calls)


async def refusal(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


async def watch(stack: Stack, count: int) -> list[Any]:
    """Opens watches of a job that no worker runs, each of which has had its first event."""
    asked = api.SubmitExplanationRequest(spec=spec())
    job = (await stack.explanations.SubmitExplanation(asked, metadata=HOSTILE)).explanation.job_id
    watching = api.WatchExplanationRequest(job_id=job)
    calls = [stack.explanations.WatchExplanation(watching, metadata=HOSTILE) for _ in range(count)]
    for call in calls:
        await call.read()
    return calls


async def test_calls_past_the_tenants_bound_are_refused_by_its_name_and_others_go_on() -> None:
    async with running(tenants(max_per_tenant=5)) as stack:
        watches = await watch(stack, 5)
        listing = api.ListExplanationsRequest()
        error = await refusal(stack.explanations.ListExplanations(listing, metadata=HOSTILE, timeout=PATIENCE))
        assert isinstance(error, Overloaded)
        assert "SAGITTAL_CALLS__MAX_PER_TENANT" in error.message
        assert error.retry_after is not None
        assert stack.metric("sagittal_calls_refused_total", reason="max_per_tenant") == 1
        await stack.explanations.ListExplanations(listing, metadata=OTHER, timeout=PATIENCE)
        await eventually(lambda: stack.metric("sagittal_tenant_refusals_total", tenant="hostile") == 1)
        watches[0].cancel()

        async def admitted() -> bool:
            try:
                await stack.explanations.ListExplanations(listing, metadata=HOSTILE, timeout=PATIENCE)
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(admitted)


async def test_the_message_of_a_call_past_the_bound_is_not_read() -> None:
    async with running(tenants(max_per_tenant=1)) as stack, connect(stack.port) as client:
        await watch(stack, 1)
        path = "/sagittal.v1.ExplanationService/SubmitExplanation"
        client.send(frame(HEADERS, END_HEADERS, 1, header_block(path, authorization="Bearer hostile")))
        async with asyncio.timeout(PATIENCE):
            answers = [payload async for kind, _, payload in client.frames_until(HEADERS) if kind == HEADERS]
        assert b"grpc-status" in answers[-1]
        assert stack.metric("sagittal_calls_refused_total", reason="max_per_tenant") == 1


async def test_a_refusal_is_held_back_so_that_who_tries_again_at_once_is_slowed_down() -> None:
    async with running(tenants(max_per_tenant=1, refusal_delay=60.0)) as stack:
        await watch(stack, 1)
        held = stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=HOSTILE)
        await eventually(lambda: stack.metric("sagittal_calls_refused_total", reason="max_per_tenant") == 1)
        await stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=OTHER, timeout=PATIENCE)
        assert not held.done()
        # as many are held as there may be calls, so that holding them back takes bounded memory
        await refusal(stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=HOSTILE))
        held.cancel()


async def test_a_tenants_requests_wait_for_each_other_and_who_leaves_meanwhile_leaves_nothing(monkeypatch) -> None:
    monkeypatch.setattr(turns, "ACTIVE_SECONDS", 1e9)  # the other tenant counts as active to the end
    settings = tenants().model_copy(update={"jobs": quick_settings(jobs={"max_accepting_per_tenant": 1}).jobs})
    async with running(settings) as stack:
        submit, go_on, submitted = stack.queue.jobs.submit, asyncio.Event(), []

        async def slow_submit(job: NewJob, accepted: bytes) -> Any:
            submitted.append(job.request_id)
            if job.tenant == "hostile":
                await go_on.wait()
            return await submit(job, accepted)

        def metric(name: str, **labels: str) -> float:
            return stack.metric(f"sagittal_rpcs_{name}_total", rpc="sagittal.v1.ExplanationService/Explain", **labels)

        def ask(metadata: Any, name: str) -> Any:
            request = api.ExplainRequest(spec=spec(request_id=name), detach=name != "leaves")
            return stack.explanations.Explain(request, metadata=metadata, timeout=PATIENCE)

        stack.queue.jobs.submit = slow_submit  # type: ignore[method-assign]
        await ask(OTHER, "first").read()
        held = asyncio.ensure_future(ask(HOSTILE, "held").read())
        await eventually(lambda: "held" in submitted)
        leaving, last = ask(HOSTILE, "leaves"), asyncio.ensure_future(ask(HOSTILE, "last").read())
        await eventually(lambda: metric("started") == 4)
        await ask(OTHER, "second").read()
        leaving.cancel()
        await eventually(lambda: metric("handled", code="CANCELLED") == 1)
        assert submitted == ["first", "held", "second"]
        go_on.set()
        await asyncio.gather(held, last)
        assert submitted == ["first", "held", "second", "last"]


async def test_watches_of_health_need_no_token_and_are_bounded_and_checks_are_not() -> None:
    async with running(tenants(max_open_watches=3)) as stack:
        stub = health_pb2_grpc.HealthStub(stack.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for each in watches:
            await each.read()
        error = await refusal(stub.Watch(health_pb2.HealthCheckRequest()).read())
        assert "SAGITTAL_CALLS__MAX_OPEN_WATCHES" in error.message
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)


async def test_thousands_of_calls_that_arrive_at_once_are_answered_and_none_is_reset() -> None:
    async with running(tenants(max_per_tenant=50)) as stack, AsyncExitStack() as channels:
        address, own = f"127.0.0.1:{stack.port}", [("grpc.use_local_subchannel_pool", 1)]
        many = [await channels.enter_async_context(grpc.aio.insecure_channel(address, options=own)) for _ in range(5)]

        async def code(channel: grpc.aio.Channel) -> str:
            call = channel.unary_unary("/sagittal.v1.ExplanationService/ListExplanations")
            try:
                await call(b"", metadata=HOSTILE, timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        flood = asyncio.gather(*(code(channel) for channel in many for _ in range(700)))
        for _ in range(5):
            await stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=OTHER, timeout=PATIENCE)
        codes = await flood
        assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}


async def test_connections_past_the_bound_are_closed_at_once() -> None:
    settings = tenants().model_copy(
        update={"connections": quick_settings(connections={"max_connections": 3}).connections}
    )
    async with running(settings) as stack, AsyncExitStack() as crowd:
        await stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=OTHER, timeout=PATIENCE)
        for _ in range(2):
            await crowd.enter_async_context(connect(stack.port))
        async with connect(stack.port) as refused, asyncio.timeout(PATIENCE):
            await refused.closed()
        await stack.explanations.ListExplanations(api.ListExplanationsRequest(), metadata=OTHER, timeout=PATIENCE)


async def test_a_connection_without_calls_is_closed() -> None:
    settings = quick_settings(connections={"max_idle": 0.5})
    async with running(settings) as stack, connect(stack.port) as idle, asyncio.timeout(PATIENCE):
        await idle.closed()
        await stack.explanations.ListExplanations(api.ListExplanationsRequest(), timeout=PATIENCE)
