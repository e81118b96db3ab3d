"""Lists, counts and streams of changes of a tenant's jobs."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

from sagittal.core.errors import InvalidRequest, Overloaded, Unavailable, UnknownJob
from sagittal.core.jobs import JobFilter, JobKind, JobState
from sagittal.queue.protocol import JobQueue
from sagittal.queue.watch import JobChanges
from sagittal.server.messages import STATES, explanation
from sagittal.server.rpc.access import Caller
from sagittal.v1 import explanation_pb2, explanation_service_pb2

#: Largest number of open streams of changes per tenant and replica.
MOST_WATCHED = 64

#: Shortest time between two reads of the changed jobs, in seconds, so that a job that changes often is read once.
PAUSE_SECONDS = 0.1

#: Longest wait for the subscription at the start, in seconds.
LISTEN_SECONDS = 5.0

#: Jobs that are converted to messages in one step of the event loop.
_AT_ONCE = 100

_STATES_BY_NUMBER: dict[int, JobState] = {number: state for state, number in STATES.items()}

_log = structlog.get_logger(__name__)


class JobLists:
    """Lists, counts and watches the explanations of the caller's tenant."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._watched: Counter[str] = Counter()

    async def list(
        self, request: explanation_service_pb2.ListExplanationsRequest, caller: Caller, limit: int
    ) -> explanation_service_pb2.ListExplanationsResponse:
        """Returns a page of jobs, newest first.

        Raises:
            InvalidRequest: a condition is wrong, or is given twice.
        """
        jobs, token = await self._queue.list(
            _listed(request, caller.tenant), limit=limit, page_token=request.page_token
        )
        page = explanation_service_pb2.ListExplanationsResponse(next_page_token=token)
        for first in range(0, len(jobs), _AT_ONCE):
            page.explanations.extend(explanation(job) for job in jobs[first : first + _AT_ONCE])
            await asyncio.sleep(0)  # others have their turn
        return page

    async def count(
        self, request: explanation_service_pb2.CountExplanationsRequest, caller: Caller
    ) -> explanation_service_pb2.CountExplanationsResponse:
        """Returns the numbers of jobs by state. Raises InvalidRequest."""
        wanted = _filter(request.filter, caller.tenant, "filter")
        counts, token = await self._queue.count(wanted, page_token=request.page_token)
        found = [
            explanation_service_pb2.StateCount(state=STATES[state], count=number)
            for state, number in sorted(counts.items())
        ]
        return explanation_service_pb2.CountExplanationsResponse(counts=found, next_page_token=token)

    async def watch(
        self, request: explanation_service_pb2.WatchJobsRequest, caller: Caller
    ) -> AsyncGenerator[explanation_service_pb2.WatchJobsResponse, None]:
        """Yields `listening`, and then each job that changed, until a change may have been missed.

        Raises:
            InvalidRequest: a condition is wrong.
            Overloaded: the tenant watches too often already.
            Unavailable: changes may have been missed, so that the caller must list again.
        """
        wanted = _filter(request.filter, caller.tenant, "filter")
        with self._place(caller.tenant), self._queue.changes(caller.tenant) as changes:
            await _listen(changes)
            yield explanation_service_pb2.WatchJobsResponse(listening=explanation_service_pb2.Listening())
            while True:
                await changes.wait()
                if changes.missed:
                    raise Unavailable("changes may have been missed: watch and list again", retry_after=PAUSE_SECONDS)
                for job_id in changes.take():
                    message = await self._change(job_id, wanted)
                    if message is not None:
                        yield message
                await asyncio.sleep(PAUSE_SECONDS)

    async def _change(self, job_id: str, wanted: JobFilter) -> explanation_service_pb2.WatchJobsResponse | None:
        try:
            job = await self._queue.get(job_id)
        except UnknownJob:
            return explanation_service_pb2.WatchJobsResponse(gone=job_id)
        if not wanted.matches(job):
            return None
        return explanation_service_pb2.WatchJobsResponse(changed=explanation(job))

    @contextmanager
    def _place(self, tenant: str) -> Iterator[None]:
        """Counts a stream of changes of the tenant while it is open."""
        if self._watched[tenant] >= MOST_WATCHED:
            text = f"{MOST_WATCHED} streams of changes are open here already: close one, or share it"
            raise Overloaded(text, retry_after=LISTEN_SECONDS)
        self._watched[tenant] += 1
        try:
            yield
        finally:
            self._watched[tenant] -= 1
            if not self._watched[tenant]:
                del self._watched[tenant]


async def _listen(changes: JobChanges) -> None:
    """Waits until the subscription receives every change. Raises Unavailable."""
    try:
        async with asyncio.timeout(LISTEN_SECONDS):
            while not changes.listening:
                await changes.wait()
    except TimeoutError as error:
        raise Unavailable("the queue does not announce changes: try again", retry_after=1.0) from error


def _listed(request: explanation_service_pb2.ListExplanationsRequest, tenant: str) -> JobFilter:
    """Returns the conditions of a list, which has some of them twice."""
    merged = explanation_service_pb2.JobFilter()
    merged.CopyFrom(request.filter)
    for field in ("model", "states", "failure_reason"):
        given = getattr(request, field)
        if given and getattr(merged, field):
            raise InvalidRequest(f"{field} is given twice; give it here or in filter", field=f"filter.{field}")
        if given and field == "states":
            merged.states.extend(given)
        elif given:
            setattr(merged, field, given)
    return _filter(merged, tenant, "filter" if request.filter.states else "")


def _filter(given: explanation_service_pb2.JobFilter, tenant: str, field: str) -> JobFilter:
    prefix = f"{field}." if field else ""
    return JobFilter(
        tenant=tenant,
        kind=JobKind.EXPLANATION,
        model=given.model,
        states=[_state(number, f"{prefix}states[{index}]") for index, number in enumerate(given.states)],
        reason=given.failure_reason,
        method=given.method,
        request_id=given.request_id,
        labels=dict(given.labels),
        created_after=_seconds(given, "create_after"),
        created_before=_seconds(given, "create_before"),
    )


def _seconds(given: explanation_service_pb2.JobFilter, name: Literal["create_after", "create_before"]) -> float | None:
    if not given.HasField(name):
        return None
    time = getattr(given, name)
    seconds = time.seconds + time.nanos / 1e9
    if not 0 <= seconds < 253402300800 or not 0 <= time.nanos < 1_000_000_000:
        raise InvalidRequest(f"{name} is {seconds:g}; give a time between 1970 and 9999", field=f"filter.{name}")
    return float(seconds)


def _state(number: int, field: str) -> JobState:
    state = _STATES_BY_NUMBER.get(number)
    if state is None:
        names = ", ".join(explanation_pb2.JobState.Name(known) for known in STATES.values())
        raise InvalidRequest(f"{field} is {number}; give one of {names}", field=field)
    return state
