"""An exhaustive model checker: visits every state within bounds, breadth first, and checks the promises there."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from queue_model.clients import Bounds, World
from queue_model.specification import Taken


class Broken(AssertionError):
    """A promise is broken; the message has the schedule."""

    def __init__(self, fault: str, schedule: Sequence[str]) -> None:
        super().__init__(f"{fault}\nschedule: {'; '.join(schedule)}")
        self.schedule = schedule


@dataclass
class Graph:
    """All states within bounds, and what leads from one to the next."""

    bounds: Bounds
    edges: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    """For each state and action, the states to which it may lead; several if the queue may choose."""
    parents: dict[int, tuple[int, str]] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)
    """The number of each state, by its key."""

    def schedule(self, state: int) -> Sequence[str]:
        """Returns a shortest schedule to a state."""
        actions = []
        while state in self.parents:
            state, action = self.parents[state]
            actions.append(action)
        return actions[::-1]

    @property
    def transitions(self) -> int:
        return sum(len(targets) for actions in self.edges.values() for targets in actions.values())

    def schedules(self) -> int:
        """Returns the number of different schedules from the first state to one in which nothing else can happen."""
        known: dict[int, int] = {}
        stack = [0]
        while stack:
            state = stack[-1]
            after = {target for targets in self.edges[state].values() for target in targets if target != state}
            missing = [target for target in after if target not in known]
            if missing:
                stack += missing
                continue
            stack.pop()
            onward = [target for targets in self.edges[state].values() for target in targets if target != state]
            known[state] = sum(known[target] for target in onward) or 1
        return known[0]


def explore(bounds: Bounds) -> Graph:
    """Visits every state and checks the promises in each. Raises Broken with a shortest schedule."""
    graph, first = Graph(bounds), World.new(bounds)
    seen = graph.numbers
    seen[first.key()] = 0
    waiting, recovered = deque([(0, first)]), set[Hashable]()
    while waiting:
        state, world = waiting.popleft()
        graph.edges[state] = {}
        for action in world.actions():
            graph.edges[state][action] = targets = []
            for after in outcomes(world, action):
                key = after.key()
                if key not in seen:
                    seen[key] = len(seen)
                    graph.parents[seen[key]] = (state, action)
                    check(after, graph.schedule(seen[key]), recovered)
                    waiting.append((seen[key], after))
                targets.append(seen[key])
    return graph


def outcomes(world: World, action: str) -> Iterator[World]:
    """Yields what an action may lead to, and checks that its call has the same effect if it is sent twice."""
    call = world.call(action)
    choices: Sequence[int | str | None] = [None]
    if call and call[0] == "lease":
        choices = world.queue.choices(call[1], busy=call[2])
    for choice in choices:
        after = world.copy()
        answer = after.play(action, choice)
        if call:
            check_repeated(after, call, answer)
        yield after


def check_repeated(world: World, call: tuple, answer: object) -> None:
    """Raises if a call that is sent again changes anything, or if another lease is given (promise 8)."""
    if call[0] == "lease" and not isinstance(answer, Taken):
        return  # nothing was taken, so the next call is a new one
    twice = world.copy()
    second = twice.answer(call, None, again=True)
    if twice.queue.key() != world.queue.key() or (call[0] == "lease" and second != answer):
        raise Broken(f"8: {call} has another effect if it is sent again: {answer}, then {second}", [])


def check(world: World, schedule: Sequence[str], recovered: set[Hashable]) -> None:
    """Raises if a state breaks a promise, or if its jobs would not end after every client died."""
    for fault in world.faults():
        raise Broken(fault, schedule)
    key = world.queue.key(repeats=False)
    if key in recovered:
        return
    recovered.add(key)
    after = world.copy()
    try:
        for action in after.recover():
            after.play(action)
    except AssertionError as error:
        raise Broken(str(error), schedule) from error
    for fault in after.faults():
        raise Broken(f"{fault}, after every client died", schedule)
