"""Random schedules by hypothesis, which shortens the ones that fail."""

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from queue_model.clients import Bounds, World
from queue_model.replay import Replay
from queue_model.scripts import RealQueue

#: Contents and seconds to the deadline: equal requests, others, another tenant's, and one that shares nothing.
JOBS = [("t:k", None), ("t:k", 10), ("t:k", 30), ("t:l", None), ("u:k", 50), ("", 20), ("", None)]

#: Actions by kind, each a rule of the machine, and how often one may happen in a schedule.
KINDS = (
    ("submit", 8), ("lease", 99), ("append", 99), ("checkpoint", 9), ("settle", 99), ("heartbeat", 99), ("release", 9),
    ("cancel", 9), ("end", 99), ("sweep", 99), ("tick", 99), ("again", 99), ("die", 9), ("restart", 1), ("retry", 2),
    ("delete", 4),
)  # fmt: skip
BUDGET = (*KINDS, ("settle failed", 9), ("settle cancelled", 9))


class QueueMachine(RuleBasedStateMachine):
    """The specification and the scripts, side by side; every rule is an action of a client, or time that passes."""

    real: ClassVar[RealQueue]
    actions: ClassVar[int] = 0
    schedules: ClassVar[int] = 0

    @initialize(jobs=st.lists(st.sampled_from(JOBS), min_size=1, max_size=5), twice=st.booleans())
    def start(self, jobs: list[tuple[str, int | None]], twice: bool) -> None:
        self.real.reset()
        bounds = Bounds(tuple(jobs), workers="abc", most_leases=2, budget=BUDGET)
        self.replay = Replay(World.new(bounds), self.real, twice=twice)

    def of(self, kind: str) -> list[str]:
        """Returns the actions of a kind that may happen now."""
        return [action for action in self.replay.world.actions() if action.partition(" ")[0] == kind]

    def teardown(self) -> None:
        if hasattr(self, "replay"):
            QueueMachine.schedules += 1
            QueueMachine.actions += len(self.replay.schedule)
            self.replay.finish()


def _action(kind: str) -> Callable[..., Any]:
    def act(self: QueueMachine, pick: int) -> None:
        actions = self.of(kind)
        self.replay.play(actions[pick % len(actions)])
        assert not self.replay.world.faults()

    act.__name__ = kind
    return precondition(lambda self: bool(self.of(kind)))(rule(pick=st.integers(0, 99))(act))


for _kind, _ in KINDS:
    setattr(QueueMachine, _kind, _action(_kind))


def run_random(real: RealQueue, *, schedules: int, steps: int, number: int) -> None:
    """Runs random schedules; `number` is the seed, and equal numbers give equal schedules. Raises Broken."""
    QueueMachine.real = real
    QueueMachine.actions = QueueMachine.schedules = 0
    limits = settings(
        max_examples=schedules,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(QueueMachine), settings=limits)  # type: ignore[no-untyped-call]
