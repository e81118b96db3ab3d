"""Readers of streams: slow ones hold up nobody and no memory, many of them need no more connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis
from embedded_queue import Queue, Registry

from sagittal.core.jobs import JobState, StoredEvent
from sagittal.queue.settings import QueueSettings
from sagittal.v1 import explanation_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import Run, Stack, eventually, explain_at_once, running, spec

#: Events of a large job, and bytes of each: far more than what HTTP/2 and the service hold for a stream.
EVENTS, EVENT_BYTES = 200, 50_000


def write_much(run: Run) -> None:
    """A script: many large masks on the way."""
    saliency = {"dtype": 1, "shape": [EVENT_BYTES // 2], "data": bytes(EVENT_BYTES)}
    for _ in range(EVENTS):
        run.send(mask=explanation_pb2.Mask(saliency=saliency))
    run.settle(completed=explanation_pb2.Completed())


@contextlib.asynccontextmanager
async def counting_reads(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    """Gives the sequence numbers of the events that the service has read from the queue."""
    read: list[int] = []
    events = stack.queue.jobs.events

    async def counted(job_id: str, after_sequence: int = 0) -> AsyncIterator[StoredEvent]:
        async with contextlib.aclosing(events(job_id, after_sequence)) as stream:
            async for event in stream:
                read.append(event.sequence)
                yield event

    monkeypatch.setattr(stack.queue.jobs, "events", counted)
    yield read


async def test_a_reader_that_stops_reading_stops_the_service_from_reading_on(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack.worker(write_much).at_work(), counting_reads(stack, monkeypatch) as read:
        stream = aiter(stack.explanations.Explain(api.ExplainRequest(spec=spec(), detach=True)))
        first = await anext(stream)

        async def ended() -> bool:
            return (await stack.queue.jobs.get(first.event.job_id)).state is JobState.COMPLETED

        await eventually(ended, 60)
        assert len(read) < 0.9 * EVENTS  # what fits into the buffers of both ends is read all the same
        rest = [response.event.sequence async for response in stream]
        assert rest == list(range(2, EVENTS + 3))


async def test_256_streams_need_no_more_connections_than_one(queue_settings: QueueSettings) -> None:
    name = queue_settings.prefix
    separator = "&" if "?" in queue_settings.url else "?"
    changes = {"url": f"{queue_settings.url}{separator}client_name={name}"}
    settings = queue_settings.model_copy(update=changes)
    queue = Queue(settings)
    registry = Registry(queue_settings)
    async with running(queue=queue, registry=registry) as stack:
        asked = [api.ExplainRequest(spec=spec(seed=seed)) for seed in range(256)]
        streams = [aiter(stack.explanations.Explain(request)) for request in asked]
        assert {(await anext(stream)).event.sequence for stream in streams} == {1}
        with redis.Redis.from_url(queue_settings.url) as client:
            connections = [each["name"] for each in client.client_list()].count(name)
        assert 1 <= connections <= settings.max_connections + 1
        async with stack.worker(explain_at_once).at_work():
            last = await asyncio.gather(*(_last(stream) for stream in streams))
        assert last == ["completed"] * 256


async def _last(stream) -> str:
    return [response.event.WhichOneof("event") async for response in stream][-1]
