"""The clients of the specified queue: they call its scripts, lose answers, and die between any two calls.

An action is one script call of one client, or time that passes, or a client's death. So a schedule of actions
interleaves all clients at every script boundary. These operations consist of several calls, and a client may die
between them: a lease (`lease`, then `end` for what must end first), a release (`release`, `end`), a sweep (`sweep`,
`end` for each), an attempt (`lease`, `append`, `checkpoint`, `settle`), and a retry (`request`, `submit`).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from queue_model.specification import CANCELLED, COMPLETED, FAILED, Ending, Event, Limits, Queue, Taken

#: Seconds that pass at once.
TICK = 10

#: A script and its arguments, in terms of the specification.
Call = tuple[Any, ...]


@dataclass
class Client:
    """The memory of a worker, or of the service, between two calls."""

    leases: list[Taken] = field(default_factory=list)
    written: dict[tuple[int, int], int] = field(default_factory=dict)
    """The last batch of each lease."""
    endings: list[Ending] = field(default_factory=list)
    last: Call | None = None
    """The call whose answer may be lost, so that it is sent again."""

    def copy(self) -> "Client":
        return Client(list(self.leases), dict(self.written), list(self.endings), self.last)

    def drop(self, run: int, token: int) -> None:
        self.leases = [lease for lease in self.leases if (lease.run, lease.token) != (run, token)]
        self.written.pop((run, token), None)


@dataclass(frozen=True)
class Bounds:
    """How much happens in a schedule."""

    jobs: tuple[tuple[str, int | None], ...]
    """Content and time to the deadline of each job, in order of submission."""
    workers: str = "ab"
    most_leases: int = 1
    budget: tuple[tuple[str, int], ...] = ()
    """How often an action of a kind happens; 'die', 'again', 'tick', ... Those that are not named do not."""


@dataclass
class World:
    """The specified queue and its clients."""

    bounds: Bounds
    queue: Queue
    clients: dict[str, Client]
    left: dict[str, int]
    submitted: int = 0
    numbered: int = 0
    """Jobs so far, with those of retries."""

    @classmethod
    def new(cls, bounds: Bounds, limits: Limits | None = None) -> "World":
        clients = {name: Client() for name in [*bounds.workers, "service"]}
        return cls(bounds, Queue(limits or Limits()), clients, dict(bounds.budget))

    def copy(self) -> "World":
        clients = {name: client.copy() for name, client in self.clients.items()}
        return World(self.bounds, self.queue.copy(), clients, dict(self.left), self.submitted, self.numbered)

    def key(self) -> Hashable:
        repeats = bool(self.left.get("again"))
        clients = tuple(
            (*each.leases, *each.written.items(), *each.endings, each.last if repeats else None)
            for each in self.clients.values()
        )
        return self.queue.key(repeats=repeats), clients, tuple(self.left.items()), self.submitted, self.numbered

    def actions(self) -> Iterator[str]:
        """Yields what may happen next."""
        if self.submitted < len(self.bounds.jobs):
            content, seconds = self.bounds.jobs[self.submitted]
            yield f"submit {content or '-'} {'-' if seconds is None else seconds}"
        for number, job in self.queue.jobs.items():
            if not job.state and self.left.get("cancel"):
                yield f"cancel {number}"
            if job.state and self.left.get("delete"):
                yield f"delete {number}"
        if self.left.get("retry"):
            dead = [number for number, job in self.queue.jobs.items() if job.reason == "dead-lettered"]
            yield from (f"retry {number}" for number in dead)
        if self.left.get("tick"):
            yield "tick"
        yield "sweep"
        for name, client in self.clients.items():
            yield from self._actions_of(name, client)
        if self.left.get("restart"):
            yield "restart"

    def _actions_of(self, name: str, client: Client) -> Iterator[str]:
        if client.endings:
            yield f"end {name}"
        if client.last and self.left.get("again"):
            yield f"again {name}"
        if (client.leases or client.endings) and self.left.get("die"):
            yield f"die {name}"
        if name != "service":
            yield from self._work_of(name, client)

    def _work_of(self, name: str, client: Client) -> Iterator[str]:
        alone = any(lease.alone for lease in client.leases)
        if not alone and not client.endings and len(client.leases) < self.bounds.most_leases:
            yield f"lease {name}"
        settled = [state for state in (FAILED, CANCELLED) if self.left.get(f"settle {state}")]
        kinds = [kind for kind in ("append", "checkpoint", "release") if self.left.get(kind)]
        for place in range(len(client.leases)):
            yield f"heartbeat {name} {place}"
            yield from (f"settle {name} {place} {state}" for state in (COMPLETED, *settled))
            yield from (f"{kind} {name} {place}" for kind in kinds)

    def call(self, action: str) -> Call | None:
        """Returns the script call of an action; None if it is none."""
        kind, *about = action.split()
        if kind in ("tick", "die", "restart"):
            return None
        if kind in ("sweep", "audit"):
            return ("sweep",)
        if about[0] in self.clients:
            return self._call_of(self.clients[about[0]], kind, about)
        if kind == "submit":
            content, seconds = about
            deadline = None if seconds == "-" else self.queue.now + int(seconds)
            return "submit", self.numbered, content.replace("-", ""), deadline
        if kind == "retry":
            return "retry", self.numbered, self.queue.runs[self.queue.jobs[int(about[0])].run].content, int(about[0])
        return kind, int(about[0])  # cancel or delete

    def _call_of(self, client: Client, kind: str, about: Sequence[str]) -> Call | None:
        if kind == "again":
            return client.last
        if kind == "end":
            return "end", client.endings[0]
        if kind == "lease":
            return "lease", about[0], bool(client.leases)
        return self._write(kind, client, client.leases[int(about[1])], about[2:])

    def _write(self, kind: str, client: Client, lease: Taken, about: Sequence[str]) -> Call:
        run, token = lease.run, lease.token
        batch = client.written.get((run, token), 0) + 1
        if kind == "append":
            return kind, run, token, batch, (Event("p", token, f"step {batch}"),)
        if kind == "checkpoint":
            return kind, run, token, f"{token}/{batch}"
        if kind == "settle":
            return kind, run, token, about[0], (Event("e", token, "mask"), Event("t", token, about[0]))
        return kind, run, token

    def play(self, action: str, choice: int | str | None = None) -> Any:
        """Lets an action happen; returns the answer of its script. A lease takes the given choice."""
        kind, *about = action.split()
        call = self.call(action)
        named = action.partition(" ")[0] if kind != "settle" else f"settle {about[2]}"
        if named in self.left:
            self.left[named] -= 1
        if kind == "tick":
            self.queue.now += TICK
        elif kind == "die":
            self.clients[about[0]] = Client()
        if call is None:
            return None
        if kind in ("submit", "retry"):
            self.numbered += 1
            self.submitted += kind == "submit"
        client = self.clients[about[0] if about and about[0] in self.clients else "service"]
        answer = self.answer(call, choice, again=kind == "again")
        if kind == "end":
            client.endings.pop(0)
        client.last = call
        self._receive(client, call, answer)
        return answer

    def answer(self, call: Call, choice: int | str | None, *, again: bool) -> Any:
        """Calls a script of the specified queue."""
        script, *arguments = call
        queue: Queue = self.queue
        if script == "lease":
            worker, busy = arguments
            if choice is None:
                choice = queue.choices(worker, busy=busy)[0]
            return queue.lease(worker, choice, again=again)
        if script == "retry":
            return queue.submit(arguments[0], arguments[1], None)
        if script == "delete":
            return queue.delete(arguments[0], again=again)
        methods: Mapping[str, Any] = {"checkpoint": queue.store}
        return (methods.get(script) or getattr(queue, script))(*arguments)

    def _receive(self, client: Client, call: Call, answer: Any) -> None:
        script, *arguments = call
        if script == "lease" and isinstance(answer, Taken):
            if answer not in client.leases:
                client.leases.append(answer)
        elif script == "lease" and isinstance(answer, Ending):
            client.endings = [answer]
        elif script == "sweep":
            client.endings = list(answer)
        elif script == "release":
            client.endings = [answer[1]] if answer[1] else []
        if answer == "lost" or script in ("settle", "release"):
            client.drop(*arguments[:2])
        elif script == "append":
            client.written[arguments[0], arguments[1]] = arguments[2]

    def faults(self) -> Sequence[str]:
        """Returns the promises that are broken."""
        held = [(lease.run, lease.token) for client in self.clients.values() for lease in client.leases]
        shared = {each for each in held if held.count(each) > 1}
        return [
            *self.queue.faults(),
            *(f"2: two workers hold token {token} of execution {run}" for run, token in shared),
        ]

    def recover(self) -> Iterator[str]:
        """Yields what happens after every client died: sweeps alone, and then one new worker."""
        yield from (f"die {name}" for name in self.clients)
        for idle in (False, True):
            for _ in range(6):
                yield "tick"
                yield from self._sweep_all()
                if idle:
                    yield from self._work()
            unended = [number for number, job in self.queue.jobs.items() if not job.state]
            for number in unended:
                run, job = self.queue.runs[self.queue.jobs[number].run], self.queue.jobs[number]
                if run.cancelled is not None or (job.deadline is not None and job.deadline < self.queue.now):
                    raise AssertionError(f"4: job {number} is {run.state} long after its deadline or cancellation")
                if idle:
                    raise AssertionError(f"1: job {number} is {run.state} although a worker is idle")

    def _sweep_all(self) -> Iterator[str]:
        yield "sweep"
        while self.clients["service"].endings:
            yield "end service"

    def _work(self) -> Iterator[str]:
        name = self.bounds.workers[0]
        for _ in range(2 * len(self.queue.jobs) + 1):
            yield f"lease {name}"
            while self.clients[name].endings:
                yield f"end {name}"
            while self.clients[name].leases:
                yield f"settle {name} 0 {COMPLETED}"
