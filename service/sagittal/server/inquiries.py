"""Inquiries: short jobs that one call waits for, such as predictions and scores of regions."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

import structlog

from sagittal.core.errors import Expired, JobFailed
from sagittal.core.jobs import Job
from sagittal.core.status import from_status
from sagittal.server.catalogue import ready_workers
from sagittal.server.layers import Context
from sagittal.server.relay import Relay
from sagittal.v1 import explanation_pb2, model_pb2

#: Time that a worker has beyond the deadline to say that it passed, in seconds.
_GRACE = 1.0


def time_left(context: Context, longest: float) -> float:
    """Returns the seconds in which a call must be answered: its own deadline or the longest that is admitted."""
    remaining = context.time_remaining()
    return longest if remaining is None else min(longest, remaining)


async def outcome(
    relay: Relay, job: Job, model: model_pb2.Model, *, rpc: str, seconds: float
) -> Mapping[str, explanation_pb2.ExplanationEvent]:
    """Waits until a job of this call has completed and returns its events by kind, the newest of each.

    A dropped call cancels the job.

    Raises:
        Expired: there was no answer in time.
        SagittalError: what the job failed with.
    """
    structlog.contextvars.bind_contextvars(job_id=job.job_id)
    try:
        async with asyncio.timeout(seconds + _GRACE):
            return await _completed(relay, job, rpc)
    except TimeoutError:
        raise Expired(_too_late(model, seconds)) from None


async def _completed(relay: Relay, job: Job, rpc: str) -> Mapping[str, explanation_pb2.ExplanationEvent]:
    newest: dict[str, explanation_pb2.ExplanationEvent] = {}
    async with aclosing(relay.owned_events(job, rpc=rpc)) as events:
        async for event in events:
            newest[event.WhichOneof("event") or ""] = event
    if "completed" in newest:
        return newest
    if "failed" in newest:
        raise from_status(newest["failed"].failed)
    if "cancelled" in newest:
        raise JobFailed(f"the job of this call was cancelled: {newest['cancelled'].cancelled.reason}")
    raise JobFailed("the log of this call's job ended without an answer")


def _too_late(model: model_pb2.Model, seconds: float) -> str:
    workers = ready_workers(model)
    why = f"{workers} workers have {model.name} ready" if workers else f"no worker has {model.name} ready"
    return f"no answer within {seconds:g} s: {why}"
