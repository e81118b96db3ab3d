"""What a program sees of Redis and of the queue's own decisions, as metrics that service and worker both export."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram

#: Upper bounds of one operation on Redis, in seconds.
_SECONDS = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


#: Why the queue ends what no worker will.
ENDINGS = ("buried", "expired", "cancelled", "damaged")

#: The operation that waits for something to come: how long that takes says nothing of Redis.
WAIT = "wait"


class QueueObserver(Protocol):
    """Hears what the queue does."""

    def answered(self, operation: str, seconds: float) -> None:
        """Redis answered an operation in this time."""
        ...

    def failed(self, operation: str, reply: str, meaning: str) -> None:
        """An operation on Redis failed by a reply of this meaning: wait, refuse or fail."""
        ...

    def shared(self, model: str, how: Literal["cache", "flight"]) -> None:
        """A job took the stored answer of another, or joined its run."""
        ...

    def ended(self, reason: str) -> None:
        """The queue ended a run or a job that no worker will: buried, expired, cancelled or damaged."""
        ...

    def quarantined(self, kind: str) -> None:
        """A record in Redis was damaged, and was set aside or corrected."""
        ...


class NoObserver:
    """Hears nothing."""

    def answered(self, operation: str, seconds: float) -> None:
        """Does nothing."""

    def failed(self, operation: str, reply: str, meaning: str) -> None:
        """Does nothing."""

    def shared(self, model: str, how: Literal["cache", "flight"]) -> None:
        """Does nothing."""

    def ended(self, reason: str) -> None:
        """Does nothing."""

    def quarantined(self, kind: str) -> None:
        """Does nothing."""


UNOBSERVED: QueueObserver = NoObserver()


class QueueMetrics:
    """A `QueueObserver` that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "sagittal_redis_seconds",
            "Time that Redis took to answer, by script or command.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "sagittal_redis_failures",
            "Operations on Redis that failed, each try counted.",
            ["operation"],
            registry=registry,
        )
        self._replies = Counter(
            "sagittal_redis_error_replies",
            "Errors that Redis answered with, each try counted, by kind and what it means: wait, refuse or fail.",
            ["reply", "meaning"],
            registry=registry,
        )
        self._shared = Counter(
            "sagittal_answers_shared",
            "Jobs that cost no run: from the cache, or by joining a flight.",
            ["model", "how"],
            registry=registry,
        )
        self._ended = Counter(
            "sagittal_jobs_ended_by_queue",
            "Runs and jobs that the queue ended, by reason: buried, expired, cancelled or damaged.",
            ["reason"],
            registry=registry,
        )
        self._quarantined = Counter(
            "sagittal_quarantined_records",
            "Records in Redis that were damaged, and were set aside or corrected, by kind of key.",
            ["kind"],
            registry=registry,
        )
        for reason in ENDINGS:
            self._ended.labels(reason)  # shown as 0 before the first, or an alert on an increase misses it

    def answered(self, operation: str, seconds: float) -> None:
        """Observes the latency."""
        self._seconds.labels(operation).observe(seconds)

    def failed(self, operation: str, reply: str, meaning: str) -> None:
        """Counts a failure."""
        self._failures.labels(operation).inc()
        self._replies.labels(reply, meaning).inc()

    def shared(self, model: str, how: Literal["cache", "flight"]) -> None:
        """Counts an answer that was shared."""
        self._shared.labels(model, how).inc()

    def ended(self, reason: str) -> None:
        """Counts an ending."""
        self._ended.labels(reason).inc()

    def quarantined(self, kind: str) -> None:
        """Counts a damaged record."""
        self._quarantined.labels(kind).inc()


@contextmanager
def timed(observer: QueueObserver, operation: str) -> Iterator[None]:
    """Tells an observer how long the context took; one that raises is not told."""
    begun = time.perf_counter()
    yield
    if operation != WAIT:
        observer.answered(operation, time.perf_counter() - begun)
