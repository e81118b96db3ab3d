"""How programs connect to the queue and the registry on Redis.

Nothing connects here: each object connects when it is first used, and again whenever it must. `check_server` is what a
program calls once at start, to hear of a Redis that would lose jobs.
"""

from sagittal.runtime.queue_metrics import UNOBSERVED, QueueObserver
from sagittal.runtime.redis_check import check_server
from sagittal.runtime.redis_jobs import RedisJobQueue
from sagittal.runtime.redis_registry import RedisModelRegistry, RedisWorkerRegistry
from sagittal.runtime.redis_worker import RedisWorkerQueue
from sagittal.runtime.settings import QueueSettings
from sagittal.runtime.supervision import Supervisor

__all__ = [
    "RedisJobQueue",
    "RedisModelRegistry",
    "RedisWorkerQueue",
    "RedisWorkerRegistry",
    "check_server",
    "connect_job_queue",
    "connect_model_registry",
    "connect_worker_queue",
    "connect_worker_registry",
]


def connect_job_queue(
    settings: QueueSettings, observer: QueueObserver = UNOBSERVED, supervisor: Supervisor | None = None
) -> RedisJobQueue:
    """Returns the service's side of the queue, its background tasks supervised. Close it on the loop that used it."""
    return RedisJobQueue(settings, observer, supervisor)


def connect_worker_queue(
    settings: QueueSettings, *, worker: str, observer: QueueObserver = UNOBSERVED
) -> RedisWorkerQueue:
    """Returns a worker's side of the queue; `worker` is its name in jobs and logs."""
    return RedisWorkerQueue(settings, worker=worker, observer=observer)


def connect_model_registry(settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> RedisModelRegistry:
    """Returns the service's side of the registry."""
    return RedisModelRegistry(settings, observer)


def connect_worker_registry(settings: QueueSettings, observer: QueueObserver = UNOBSERVED) -> RedisWorkerRegistry:
    """Returns a worker's side of the registry."""
    return RedisWorkerRegistry(settings, observer)
