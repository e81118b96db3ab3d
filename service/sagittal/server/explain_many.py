"""ExplainMany: many jobs over one call, with a bounded number in flight and their events as they arrive."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog

from sagittal.core.bounds import check_bounds
from sagittal.core.errors import InvalidRequest, SagittalError, to_status
from sagittal.core.jobs import Job
from sagittal.core.requests import MAX_REQUEST_ID
from sagittal.core.text import shown
from sagittal.server.intake import Acceptance, Intake
from sagittal.server.messages import timestamp
from sagittal.server.relay import Relay
from sagittal.server.rpc.access import Caller
from sagittal.server.rpc.requests import claim_request
from sagittal.v1 import explanation_pb2, explanation_service_pb2

_RPC = "ExplainMany"

Requests = AsyncIterator[explanation_service_pb2.ExplainManyRequest]
Events = AsyncGenerator[explanation_pb2.ExplanationEvent, None]


class Many:
    """Serves ExplainMany: a call has at most `max_in_flight` jobs, and reads the next request when one ends."""

    def __init__(self, intake: Intake, relay: Relay, max_in_flight: int) -> None:
        self._intake = intake
        self._relay = relay
        self._max_in_flight = max_in_flight

    async def events(self, requests: Requests, caller: Caller) -> Events:
        """Yields the events of all jobs; if the caller disconnects, cancels those that have not ended."""
        pipeline = Pipeline(self._intake, self._relay, caller, self._max_in_flight)
        reading = asyncio.create_task(pipeline.read(requests))
        try:
            while (item := await pipeline.outbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            pipeline.drop()
            raise
        finally:
            await pipeline.stop(reading)


class Pipeline:
    """State of one ExplainMany call."""

    def __init__(self, intake: Intake, relay: Relay, caller: Caller, max_in_flight: int) -> None:
        self._intake = intake
        self._relay = relay
        self._caller = caller
        self._slots = asyncio.Semaphore(max_in_flight)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._accepting: dict[str, Acceptance] = {}
        self._owned: dict[str, Job] = {}
        self.outbox: asyncio.Queue[explanation_pb2.ExplanationEvent | Exception | None] = asyncio.Queue(maxsize=1)
        """Events, read at the caller's pace; an exception ends the call with an error, None ends it."""

    async def read(self, requests: Requests) -> None:
        """Starts a job for each request while slots are free; returns when all jobs have ended."""
        try:
            await self._slots.acquire()
            async for request in requests:
                await self._start(request)
                await self._slots.acquire()
            while self._tasks:
                await asyncio.wait(tuple(self._tasks.values()))
            await self.outbox.put(None)
        except Exception as error:  # noqa: BLE001 - `events` raises it again
            await self.outbox.put(error)

    def drop(self) -> None:
        """Cancels the jobs in flight that this call created, including those that are still being accepted."""
        for job in self._owned.values():
            self._relay.drop(job, rpc=_RPC)
        self._abandon(drop=True)

    async def stop(self, reading: asyncio.Task[None]) -> None:
        """Ends the tasks of the call; its jobs continue unless they were dropped."""
        self._abandon(drop=False)
        running = (reading, *self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _abandon(self, *, drop: bool) -> None:
        while self._accepting:
            self._relay.abandon(self._accepting.popitem()[1], rpc=_RPC, drop=drop)

    async def _start(self, request: explanation_service_pb2.ExplainManyRequest) -> None:
        spec, request_id = request.spec, request.spec.request_id
        fault = self._fault(request)
        if fault is not None:
            await self.outbox.put(_refusal(request_id[:MAX_REQUEST_ID], fault))
            self._slots.release()
            return
        claim_request()
        task = asyncio.create_task(self._run(spec, request_id))
        self._tasks[request_id] = task
        task.add_done_callback(lambda _: self._forget(request_id))

    def _forget(self, request_id: str) -> None:
        del self._tasks[request_id]
        self._owned.pop(request_id, None)
        self._slots.release()

    def _fault(self, request: explanation_service_pb2.ExplainManyRequest) -> InvalidRequest | None:
        try:
            check_bounds(request)
        except InvalidRequest as error:
            return error
        request_id = request.spec.request_id
        if not request_id:
            text = "spec.request_id is not set; give each request its own, which identifies its events"
            return InvalidRequest(text, field="spec.request_id")
        if request_id in self._tasks:
            text = f"spec.request_id {shown(request_id)} is already in flight in this call; give each request its own"
            return InvalidRequest(text, field="spec.request_id")
        return None

    async def _run(self, spec: explanation_pb2.ExplanationSpec, request_id: str) -> None:
        accepting = Acceptance(self._intake.explain(spec, self._caller))
        self._accepting[request_id] = accepting
        try:
            job, is_new = await asyncio.shield(accepting.task)
        except SagittalError as error:
            self._intake.note_refusal(error, self._caller)
            await self.outbox.put(_refusal(request_id, error))
            return
        except Exception as error:  # noqa: BLE001 - `events` raises it again
            await self.outbox.put(error)
            return
        finally:
            self._accepting.pop(request_id, None)
        structlog.contextvars.bind_contextvars(job_id=job.job_id)  # binds it for this task only
        del spec  # its images are stored
        if is_new:
            self._owned[request_id] = job
        await self._relay_events(job)

    async def _relay_events(self, job: Job) -> None:
        try:
            async with aclosing(self._relay.events(job)) as events:
                async for event in events:
                    await self.outbox.put(event)
        except Exception as error:  # noqa: BLE001 - `events` raises it again
            await self.outbox.put(error)


def _refusal(request_id: str, error: SagittalError) -> explanation_pb2.ExplanationEvent:
    return explanation_pb2.ExplanationEvent(
        request_id=request_id, sequence=1, time=timestamp(time.time()), failed=to_status(error)
    )
