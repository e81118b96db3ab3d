"""What a job will cost, before it is queued."""

import time
from collections.abc import Mapping

from sagittal.core.costs import MAX_EVALUATIONS, Cost, estimate
from sagittal.runtime.queue import JobQueue
from sagittal.v1 import model_pb2

#: Age up to which learned costs are used without asking the queue, in seconds.
REFRESH = 5.0

#: Methods on models whose costs are remembered; past it, all are asked for anew.
MOST_KNOWN = 4096

_UNKNOWN = Cost(0.0, 0.0)


class Estimates:
    """Estimates costs from what the queue has learned, asking for it at most once in `REFRESH` seconds."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._known: dict[tuple[str, str, str], tuple[float, Mapping[str, Cost]]] = {}

    async def of(self, model: model_pb2.Model, method: str, setting: str, most: int) -> Cost:
        """Returns the cost of a setting of a method on a model, zeros where nothing is known.

        Args:
            model: The model.
            method: Name of the method.
            setting: What decides the cost.
            most: Evaluations that the job may use; 0 for no bound. It is the estimate where nothing is known.
        """
        found = estimate(setting, await self._observed((model.name, model.version, method)))
        if found is None:
            return Cost(float(most), 0.0) if most else _UNKNOWN
        share = min(1.0, (most or MAX_EVALUATIONS) / found.evaluations)
        return Cost(found.evaluations * share, found.seconds * share)

    async def _observed(self, key: tuple[str, str, str]) -> Mapping[str, Cost]:
        until, observed = self._known.get(key, (0.0, {}))
        if until < time.monotonic():
            observed = await self._queue.costs(*key)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = (time.monotonic() + REFRESH, observed)
        return observed
