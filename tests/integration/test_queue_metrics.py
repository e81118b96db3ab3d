"""What a queue on Redis tells its observer, through the metrics that programs export."""

import pytest
import structlog
from prometheus_client import CollectorRegistry

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import JobState
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.settings import QueueSettings

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"


async def test_answers_that_cost_no_run_are_told_by_how(queue_settings: QueueSettings, new_job) -> None:
    registry = CollectorRegistry()
    jobs = RedisJobQueue(queue_settings, QueueMetrics(registry))
    worker = RedisWorkerQueue(queue_settings, worker="w")

    def shared(how: str) -> float | None:
        return registry.get_sample_value("sagittal_answers_shared_total", {"model": "model", "how": how})

    try:
        await jobs.submit(new_job(content_key="c"), b"")
        _, is_new = await jobs.submit(new_job(content_key="c"), b"")
        assert is_new
        assert (shared("flight"), shared("cache")) == (1, None)
        lease = worker.lease([("model", "1")], block_seconds=5)
        assert lease is not None
        worker.settle(lease, b"", JobState.COMPLETED)
        answered, is_new = await jobs.submit(new_job(content_key="c"), b"")
        assert is_new
        assert answered.state is JobState.COMPLETED
        assert (shared("flight"), shared("cache")) == (1, 1)
        assert registry.get_sample_value("sagittal_redis_seconds_count", {"operation": "submit"}) == 3
    finally:
        worker.close()
        await jobs.close()


async def test_a_redis_that_is_away_counts_each_try() -> None:
    registry = CollectorRegistry()
    jobs = RedisJobQueue(QueueSettings(url="redis://127.0.0.1:1/0", operation_timeout=2.0), QueueMetrics(registry))
    try:
        with pytest.raises(Unavailable):
            await jobs.ping()
        failures = registry.get_sample_value("sagittal_redis_failures_total", {"operation": "ping"})
        assert failures is not None
        assert failures >= 2
        assert registry.get_sample_value("sagittal_redis_seconds_count", {"operation": "ping"}) is None
    finally:
        await jobs.close()


async def test_a_buried_job_is_counted_by_whoever_buries_it(queue_settings: QueueSettings, new_job) -> None:
    registry = CollectorRegistry()
    settings = queue_settings.model_copy(
        update={"max_attempts": 1, "lease_seconds": 0.2, "heartbeat_seconds": 0.1, "sweep_seconds": 0.1}
    )
    jobs = RedisJobQueue(settings, QueueMetrics(registry))
    worker = RedisWorkerQueue(settings, worker="w")
    try:
        with structlog.testing.capture_logs() as lines:
            job, _ = await jobs.submit(new_job(trace_context=TRACE), b"")
            for _ in range(2):  # its last attempt is one that it has a worker for itself
                assert worker.lease([("model", "1")], block_seconds=30) is not None
            async for event in jobs.events(job.job_id):
                assert event.sequence
        (line,) = (line for line in lines if line["event"] == "job-ended-by-queue")
        assert (line["job_id"], line["trace_id"], line["reason"]) == (job.job_id, "ab" * 16, "buried")
        assert registry.get_sample_value("sagittal_jobs_ended_by_queue_total", {"reason": "buried"}) == 1
    finally:
        worker.close()
        await jobs.close()
