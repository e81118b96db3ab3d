"""What the in-memory queue admits, and what it has learned of costs: what `submit` and `settle` are to Redis."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sagittal.core.costs import Cost
from sagittal.core.errors import Overloaded
from sagittal.core.jobs import Lane, NewJob
from sagittal.runtime.admission import overloaded
from sagittal.runtime.job_events import Settled
from sagittal.runtime.memory_records import Run
from sagittal.runtime.settings import QueueSettings

#: Settings that are remembered of a method on a model, and least weight of the newest run in their means.
MOST_SETTINGS, NEWEST_SHARE = 32, 0.2


@dataclass(slots=True)
class _Mean:
    cost: Cost
    count: int = 1
    last: float = 0.0


class MemoryLedger:
    """Admission bounds and learned costs."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._costs: defaultdict[tuple[str, str, str], dict[str, _Mean]] = defaultdict(dict)
        self._pace: dict[Lane, float] = {}

    def costs(self, model: str, version: str, method: str) -> Mapping[str, Cost]:
        """Returns what settings of a method cost on a model."""
        return {setting: mean.cost for setting, mean in self._costs[model, version, method].items()}

    def learn(self, run: Run, settled: Settled, now: float) -> None:
        """Learns from a run that was completed whole at its first attempt."""
        if not settled.evaluations or settled.seconds <= 0 or run.attempt != 1:
            return
        pace = settled.evaluations / settled.seconds
        old = self._pace.get(run.lane, pace)
        self._pace[run.lane] = old + NEWEST_SHARE * (pace - old)
        if run.new.setting:
            known = self._costs[run.new.model, run.new.version, run.new.method]
            _remember(known, run.new.setting, Cost(settled.evaluations, settled.seconds), now)

    def evaluations(self, job: NewJob) -> int:
        """Returns the evaluations that a job counts for."""
        return job.estimated_evaluations or self._settings.assumed_evaluations

    def refusal(self, job: NewJob, waiting: Sequence[Run], running: int) -> Overloaded | None:
        """Returns why a job cannot wait with the others of its lane; None where it can."""
        mine = [run for run in waiting if run.new.tenant == job.tenant]
        spent, my_spent = self._sum(waiting), self._sum(mine)
        estimate, lane = self.evaluations(job), job.lane.value
        most = self._settings.max_queued_evaluations.get(lane, math.inf)
        my_most = self._settings.max_queued_evaluations_per_tenant.get(lane, math.inf)
        checks: Iterable[tuple[str, float, bool, float]] = (
            _jobs("lane", self._settings.max_queued.get(lane, math.inf), len(waiting), spent),
            _jobs("tenant", self._settings.max_queued_per_tenant.get(lane, math.inf), len(mine), spent),
            ("evaluations", most, bool(spent) and spent + estimate > most, spent + estimate - most),
            (
                "tenant_evaluations",
                my_most,
                bool(my_spent) and my_spent + estimate > my_most,
                (my_spent + estimate - my_most) * spent / max(my_spent, 1),
            ),
        )
        for what, bound, full, excess in checks:
            if full:
                pace = running * self._pace.get(job.lane, 0.0)
                return overloaded(what, int(bound), excess / pace if pace else None, self._settings)
        return None

    def _sum(self, runs: Iterable[Run]) -> int:
        return sum(self.evaluations(run.new) for run in runs)


def _jobs(what: str, bound: float, count: int, evaluations: int) -> tuple[str, float, bool, float]:
    return what, bound, count >= bound, evaluations / max(count, 1)


def _remember(known: dict[str, _Mean], setting: str, cost: Cost, now: float) -> None:
    mean = known.get(setting)
    if mean is None:
        if len(known) >= MOST_SETTINGS:
            del known[min(known, key=lambda each: known[each].last)]
        known[setting] = _Mean(cost, last=now)
        return
    share = max(1 / (mean.count + 1), NEWEST_SHARE)
    old = mean.cost
    mean.cost = Cost(
        old.evaluations + share * (cost.evaluations - old.evaluations),
        old.seconds + share * (cost.seconds - old.seconds),
    )
    mean.count, mean.last = mean.count + 1, now
