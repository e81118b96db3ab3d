"""Replays schedules on the real scripts beside the specification, and compares every answer and every job."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from queue_model.clients import TICK, World
from queue_model.explore import Broken, Graph
from queue_model.scripts import RealQueue
from queue_model.specification import RUNNING, Ending, Queue, Taken

REASONS = {"expired": "DEADLINE_PASSED", "dead-lettered": "JOB_BURIED"}


class Replay:
    """A specified queue and a real one, which must agree after every action."""

    def __init__(self, world: World, real: RealQueue, *, twice: bool = False, schedule: Sequence[str] = ()) -> None:
        """Starts with queues that agree, after a schedule; `twice` sends every call twice, as after a lost answer."""
        self.world, self.real, self.twice = world, real, twice
        self.schedule = list(schedule)

    def play(self, action: str, *, observed: bool = True) -> str:
        """Lets an action happen on both sides; returns the answer. Raises Broken if they differ."""
        self.schedule.append(action)
        try:
            answer = self._play(action)
            if observed:
                self._compare()
        except AssertionError as error:
            raise Broken(str(error), self.schedule) from error
        return str(answer)

    def _play(self, action: str) -> Any:
        kind, call = action.partition(" ")[0], self.world.call(action)
        if call is None:
            if kind == "tick":
                self.real.tick(TICK)
            elif kind == "restart":
                self.real.restart()
            return self.world.play(action)
        again, choice = kind == "again", None
        choices = self.world.queue.choices(call[1], busy=call[2]) if call[0] == "lease" else ()
        answer = self.real.audit() if kind == "audit" else self.real.call(call, again=again)
        if call[0] == "lease":
            choice = (
                answer.run if isinstance(answer, Taken) else answer.number if isinstance(answer, Ending) else answer
            )
            choice = choice if choice in choices else choices[0]
        expected = self.world.play(action, choice)
        if _ordered(answer) != _ordered(expected):
            raise AssertionError(f"the scripts answer {answer} to {call}, the specification {expected}")
        if self.twice and (call[0] != "lease" or isinstance(answer, Taken)):
            second = self.real.call(call, again=True)
            if call[0] not in ("end", "submit", "retry") and _ordered(second) != _ordered(answer):
                raise AssertionError(
                    f"8: the scripts answer {second} to {call} the second time, {answer} the first time"
                )
        return answer

    def _compare(self) -> None:
        numbers = range(self.world.numbered)
        for number, found in self.real.observe(numbers).items():
            expected = view(self.world.queue, number)
            if found != expected:
                raise AssertionError(f"job {number} is {found}, in the specification {expected}")
        leases = {number: run.expires for number, run in self.world.queue.runs.items() if run.state == RUNNING}
        if self.real.expiries != leases:
            raise AssertionError(f"leases expire at {self.real.expiries}, in the specification at {leases}")

    def finish(self) -> None:
        """Lets every client die and the queue recover, and checks that nothing is lost or left over."""
        self.play("audit")
        try:
            for action in self.world.recover():
                self.play(action, observed=False)
            self._compare()
        except Broken:
            raise
        except AssertionError as error:
            raise Broken(str(error), self.schedule) from error


def _ordered(answer: Any) -> Any:
    return sorted(answer) if isinstance(answer, list) else answer


def view(queue: Queue, number: int) -> Any:
    """Returns what `RealQueue.observe` must find."""
    job = queue.jobs.get(number)
    if job is None:
        return None
    run = queue.runs[job.run]
    state, attempt = (job.state, job.attempt) if job.state else (run.state, run.attempt)
    reason = REASONS.get(job.reason, "")
    return state, attempt, reason, bool(job.state), tuple(queue.log_of(number))


def replay(world: World, real: RealQueue, schedule: Iterable[str], *, twice: bool = False) -> Replay:
    """Replays a schedule."""
    real.reset()
    running = Replay(world, real, twice=twice)
    for action in schedule:
        running.play(action)
    running.finish()
    return running


@dataclass
class Covered:
    """How much of a graph was replayed."""

    states: int = 0
    transitions: int = 0
    recoveries: int = 0


def cover(graph: Graph, real: RealQueue, *, recover_every: int = 10, most: int | None = None) -> Covered:
    """Replays every action in every state that the scripts reach, breadth first; every second call is sent twice.

    From a part of the states, every client dies and the queue recovers. Ends after `most` transitions.
    """
    covered = Covered()
    real.reset()
    waiting = deque([(World.new(graph.bounds), real.save(), list[str]())])
    seen = {0}
    while waiting and (most is None or covered.transitions < most):
        world, saved, schedule = waiting.popleft()
        covered.states += 1
        for action in graph.edges[graph.numbers[world.key()]]:
            real.restore(saved)
            running = Replay(world.copy(), real, twice=covered.transitions % 2 == 1, schedule=schedule)
            running.play(action)
            covered.transitions += 1
            state = graph.numbers[running.world.key()]
            if state not in seen:
                seen.add(state)
                waiting.append((running.world, real.save(), running.schedule))
                if len(seen) % recover_every == 0:
                    covered.recoveries += 1
                    Replay(running.world.copy(), real, schedule=running.schedule).finish()
    return covered
