"""Metrics of Redis operations and of the queue's decisions, exported by service and workers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

#: Upper bounds of the histogram of operation times, in seconds.
_SECONDS = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


#: Reasons for which the queue ends a job that no worker will end. `buried` is the label of dead-lettered jobs.
ENDINGS = ("buried", "expired", "cancelled", "damaged")

#: Name of the operation that waits for work. Its duration is not a latency of Redis.
WAIT = "wait"


class QueueObserver:
    """Receives what the queue observes. This one ignores everything."""

    def answered(self, operation: str, seconds: float) -> None:
        """Redis answered an operation within this time."""

    def failed(self, operation: str, reply: str, meaning: str) -> None:
        """An operation on Redis failed with a reply of this meaning: wait, refuse or fail."""

    def shared(self, model: str, how: Literal["cache", "flight"]) -> None:
        """A job took the stored answer of another, or joined its execution."""

    def ended(self, reason: str) -> None:
        """The queue ended an execution or job: buried (dead-lettered), expired, cancelled or damaged."""

    def quarantined(self, kind: str) -> None:
        """A damaged record in Redis was moved aside or corrected."""


UNOBSERVED = QueueObserver()


class QueueMetrics(QueueObserver):
    """A `QueueObserver` that exports Prometheus metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "sagittal_redis_seconds",
            "Time until Redis answered, by script or command.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "sagittal_redis_failures",
            "Failed operations on Redis, counting each attempt.",
            ["operation"],
            registry=registry,
        )
        self._replies = Counter(
            "sagittal_redis_error_replies",
            "Error replies of Redis, counting each attempt, by kind and by meaning: wait, refuse or fail.",
            ["reply", "meaning"],
            registry=registry,
        )
        self._shared = Counter(
            "sagittal_answers_shared",
            "Jobs without an execution of their own: answered from the cache, or joined to a running one (flight).",
            ["model", "how"],
            registry=registry,
        )
        self._ended = Counter(
            "sagittal_jobs_ended_by_queue",
            "Executions and jobs ended by the queue, by reason: buried (dead-lettered), expired, cancelled or damaged.",
            ["reason"],
            registry=registry,
        )
        self._quarantined = Counter(
            "sagittal_quarantined_records",
            "Damaged records in Redis that were moved aside or corrected, by kind of key.",
            ["kind"],
            registry=registry,
        )
        for reason in ENDINGS:
            self._ended.labels(reason)  # starts at 0, so that an alert on the increase sees the first one

    def answered(self, operation: str, seconds: float) -> None:
        """Observes the time."""
        self._seconds.labels(operation).observe(seconds)

    def failed(self, operation: str, reply: str, meaning: str) -> None:
        """Counts a failure."""
        self._failures.labels(operation).inc()
        self._replies.labels(reply, meaning).inc()

    def shared(self, model: str, how: Literal["cache", "flight"]) -> None:
        """Counts a shared answer."""
        self._shared.labels(model, how).inc()

    def ended(self, reason: str) -> None:
        """Counts an ending."""
        self._ended.labels(reason).inc()

    def quarantined(self, kind: str) -> None:
        """Counts a damaged record."""
        self._quarantined.labels(kind).inc()


@contextmanager
def timed(observer: QueueObserver, operation: str) -> Iterator[None]:
    """Reports the duration of its body to an observer, unless the body raises."""
    begun = time.perf_counter()
    yield
    if operation != WAIT:
        observer.answered(operation, time.perf_counter() - begun)
