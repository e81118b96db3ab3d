"""Callers that do what callers do: read to the end, ask later, cancel, go away, stall, crash, and send many at once."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
from chaos.questions import PICTURE, SPECS
from chaos.world import Program, World

from sagittal.client import Accepted, Client, JobCancelled, Overloaded, SagittalError, Started, Unavailable
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc

#: Longest that one caller waits for one job, in seconds.
PATIENCE = 180.0


@dataclass(slots=True)
class Seen:
    """What the callers saw; all of them write to it."""

    kept: set[str] = field(default_factory=set)
    """Jobs that nobody cancelled and nobody left: each must be completed."""
    left: set[str] = field(default_factory=set)
    """Jobs whose caller cancelled them or went away: completed or cancelled."""
    wrong: list[str] = field(default_factory=list)
    refusals: int = 0
    """Calls that the service refused because Redis or itself was away or full, after all tries."""
    acts: dict[str, int] = field(default_factory=dict)
    resumed: list[float] = field(default_factory=list)
    """Times from the break of a stream to its next event, in seconds."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Callers:
    """Threads that call until they are told to end."""

    def __init__(self, world: World, count: int) -> None:
        self.seen = Seen()
        self._world = world
        self._ending = threading.Event()
        self._crashes = 0
        seeds = [world.random.randrange(2**32) for _ in range(count)]
        self._threads = [threading.Thread(target=self._call, args=(random.Random(seed),)) for seed in seeds]

    def start(self) -> None:
        """Begins to call."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Lets every caller come to the end of what it does."""
        self._ending.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self._wrong("a caller is still waiting after all this time")

    def _call(self, chance: random.Random) -> None:
        acts, weights = list(ACTS), [weight for weight, _ in ACTS.values()]
        with self._world.client() as client:
            while not self._ending.is_set():
                [name] = chance.choices(acts, weights)
                try:
                    ACTS[name][1](self, client, chance)
                except (Unavailable, Overloaded):
                    with self.seen.lock:
                        self.seen.refusals += 1
                except (SagittalError, AssertionError, grpc.RpcError) as error:
                    self._wrong(f"{name}: {type(error).__name__}: {error}")
                else:
                    with self.seen.lock:
                        self.seen.acts[name] = self.seen.acts.get(name, 0) + 1

    def _wrong(self, what: str) -> None:
        with self.seen.lock:
            self.seen.wrong.append(what)

    def _note(self, job_id: str, *, left: bool) -> None:
        with self.seen.lock:
            (self.seen.left if left else self.seen.kept).add(job_id)

    # --- what they do

    def read(self, client: Client, chance: random.Random) -> None:
        """Explains and reads to the end; answers may be shared."""
        cache = chance.choice(["use", "bypass", "bypass"])
        stream = client.stream(
            PICTURE, model="left", target=1, cache=cache, partial_masks=True, detach=True, **chance.choice(SPECS)
        )
        for event in stream:
            if isinstance(event, Accepted):
                self._note(event.job_id, left=False)

    def watch(self, client: Client, chance: random.Random) -> None:
        """Submits, and watches over a call of its own that counts every event."""
        job_id = self._submit(client, chance, left=False)
        self._follow(client, job_id, lambda _event: None)

    def stall(self, client: Client, chance: random.Random) -> None:
        """Stops reading in the middle, and goes on."""
        job_id = self._submit(client, chance, left=False)
        pauses = iter([chance.uniform(0.5, 2.0)])
        self._follow(client, job_id, lambda _event: time.sleep(next(pauses, 0.0)))

    def cancel(self, client: Client, chance: random.Random) -> None:
        """Submits, waits a little, and cancels."""
        job_id = self._submit(client, chance, left=True)
        time.sleep(chance.uniform(0.0, 0.6))
        client.cancel(job_id)
        self._follow(client, job_id, lambda _event: None)

    def leave(self, client: Client, chance: random.Random) -> None:
        """Drops a stream in the middle; a reset of the connection may have done so before."""
        dropped = contextlib.suppress(JobCancelled)
        with dropped, client.stream(PICTURE, model="left", target=1, cache="bypass", **chance.choice(SPECS)) as stream:
            for event in stream:
                if isinstance(event, Accepted):
                    self._note(event.job_id, left=True)
                if isinstance(event, Started):
                    break

    def crash(self, _client: Client, chance: random.Random) -> None:
        """Is killed in the middle, connection and all."""
        with self.seen.lock:
            self._crashes += 1
            name = f"client{self._crashes}"
        environment = {
            "CHAOS_ADDRESS": self._world.address,
            "CHAOS_SPEC": str(chance.randrange(len(SPECS))),
        }
        program = Program(name, "client", environment, kept=False)
        self._world.start(program)
        self._world.await_start(program)
        log = self._world.directory / f"{name}.log"
        until = time.monotonic() + 30
        while time.monotonic() < until and not (log.exists() and "\n" in log.read_text()):
            time.sleep(0.05)
        self._world.destroy(program)
        words = log.read_text().split()
        if words[:1] == ["accepted"]:
            self._note(words[1], left=True)

    def many(self, client: Client, chance: random.Random) -> None:
        """Sends several at once over one call."""
        images = {str(number): PICTURE for number in range(3)}
        options = chance.choice(SPECS)
        for outcome in client.explain_many(images, model="left", target=1, cache="bypass", **options):
            if outcome.error is not None and not isinstance(outcome.error, Unavailable | JobCancelled):
                self._wrong(f"many: {type(outcome.error).__name__}: {outcome.error}")

    # --- how

    def _submit(self, client: Client, chance: random.Random, *, left: bool) -> str:
        spec = chance.choice(SPECS)
        job = client.submit(
            PICTURE, model="left", target=1, cache="bypass", lane=chance.choice(["interactive", "batch"]), **spec
        )
        self._note(job.job_id, left=left)
        return job.job_id

    def _follow(self, client: Client, job_id: str, react: Callable[[pb.ExplanationEvent], None]) -> None:
        """Reads a job's events to the last over bare calls: each number once and in order, whatever breaks."""
        stub = service_grpc.ExplanationServiceStub(client._channel)
        sequence, broken, until = 0, 0.0, time.monotonic() + PATIENCE
        while True:
            request = service_pb.WatchExplanationRequest(job_id=job_id, after_sequence=sequence)
            try:
                for response in stub.WatchExplanation(request, timeout=PATIENCE):
                    event = response.event
                    assert event.sequence == sequence + 1, f"event {event.sequence} after {sequence} of {job_id}"
                    sequence = event.sequence
                    if broken:
                        with self.seen.lock:
                            self.seen.resumed.append(time.monotonic() - broken)
                        broken = 0.0
                    if event.WhichOneof("event") in ("completed", "failed", "cancelled"):
                        return
                    react(event)
            except grpc.RpcError as error:
                if error.code() not in PASSING:
                    raise
            broken = broken or time.monotonic()
            assert time.monotonic() < until, f"no end of {job_id} after event {sequence}"
            time.sleep(0.1)


#: With what a call may end when a connection, a service or Redis is broken.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)

#: How often each act is done, relative to the others.
ACTS: Mapping[str, tuple[float, Callable[[Callers, Client, random.Random], None]]] = {
    "read": (6.0, Callers.read),
    "watch": (5.0, Callers.watch),
    "stall": (1.0, Callers.stall),
    "cancel": (2.0, Callers.cancel),
    "leave": (2.0, Callers.leave),
    "crash": (1.0, Callers.crash),
    "many": (1.5, Callers.many),
}
