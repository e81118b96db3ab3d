"""Converts jobs and events to messages of the API."""

from collections.abc import Iterable, Mapping

from google.protobuf import timestamp_pb2

from sagittal.core.jobs import CachePolicy, Job, JobState, Lane, StoredEvent
from sagittal.v1 import explanation_pb2

STATES: Mapping[JobState, "explanation_pb2.JobState.ValueType"] = {
    JobState.QUEUED: explanation_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: explanation_pb2.JOB_STATE_RUNNING,
    JobState.COMPLETED: explanation_pb2.JOB_STATE_COMPLETED,
    JobState.FAILED: explanation_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: explanation_pb2.JOB_STATE_CANCELLED,
}

LANES: Mapping[int, Lane] = {
    explanation_pb2.LANE_UNSPECIFIED: Lane.INTERACTIVE,
    explanation_pb2.LANE_INTERACTIVE: Lane.INTERACTIVE,
    explanation_pb2.LANE_BATCH: Lane.BATCH,
}

CACHE_POLICIES: Mapping[int, CachePolicy] = {
    explanation_pb2.CACHE_POLICY_UNSPECIFIED: CachePolicy.USE,
    explanation_pb2.CACHE_POLICY_USE: CachePolicy.USE,
    explanation_pb2.CACHE_POLICY_REFRESH: CachePolicy.REFRESH,
    explanation_pb2.CACHE_POLICY_BYPASS: CachePolicy.BYPASS,
}

_LANE_NUMBERS: Mapping[Lane, "explanation_pb2.Lane.ValueType"] = {
    Lane.INTERACTIVE: explanation_pb2.LANE_INTERACTIVE,
    Lane.BATCH: explanation_pb2.LANE_BATCH,
}


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Returns seconds since the epoch as a Timestamp."""
    whole, part = divmod(seconds, 1)
    return timestamp_pb2.Timestamp(seconds=int(whole), nanos=int(part * 1e9))


def explanation(job: Job, events: Iterable[explanation_pb2.ExplanationEvent] = ()) -> explanation_pb2.Explanation:
    """Returns a job as a message, with these events."""
    return explanation_pb2.Explanation(
        job_id=job.job_id,
        state=STATES[job.state],
        request_id=job.request_id,
        model=job.model,
        model_version=job.version,
        method=job.method,
        lane=_LANE_NUMBERS[job.lane],
        create_time=timestamp(job.created),
        end_time=timestamp(job.ended) if job.ended is not None else None,
        attempt=job.attempt,
        worker=job.worker,
        failure_reason=job.reason,
        labels=job.labels,
        events=events,
    )


def event(stored: StoredEvent, job: Job) -> explanation_pb2.ExplanationEvent:
    """Returns a stored event as an event of this job; jobs that share an execution have their own identifiers."""
    message = explanation_pb2.ExplanationEvent.FromString(stored.payload)
    message.job_id = job.job_id
    message.request_id = job.request_id
    message.sequence = stored.sequence
    return message
