"""What programs share: the queue and the registry (protocols, and what keeps them on Redis), settings, telemetry.

This package imports no Redis: `redis_queue` has the functions that connect.
"""

from sagittal.runtime.queue import JobQueue, LeaseLost, WorkerQueue
from sagittal.runtime.registry import ModelRegistry, WorkerRegistry

__all__ = ["JobQueue", "LeaseLost", "ModelRegistry", "WorkerQueue", "WorkerRegistry"]
