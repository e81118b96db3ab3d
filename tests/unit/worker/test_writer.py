"""What is written for a job, and in which order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from embedded_queue import Queue

from sagittal.core.errors import Overloaded, QueueFailed, Unavailable
from sagittal.core.jobs import JobState, Lease, NewJob
from sagittal.process.supervision import Supervisor
from sagittal.queue.protocol import LeaseLost
from sagittal.worker.execution.writer import BATCH, FAILURES_IN_A_ROW, EventWriter


class Recorder:
    """A worker's queue that notes what is written, and fails where it is told to."""

    def __init__(self) -> None:
        self.written: list[tuple[str, object]] = []
        self.failing: list[Exception] = []
        self.when_failing: Callable[[], None] = lambda: None

    def append(self, lease: Lease, events: list[bytes]) -> None:
        self._note("append", tuple(events))

    def checkpoint(self, lease: Lease, state: bytes) -> None:
        self._note("checkpoint", state)

    def settle(self, lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        self._note("settle", (*events, event))

    def release(self, lease: Lease) -> None:
        self._note("release", None)

    def _note(self, call: str, value: object) -> None:
        if self.failing:
            self.when_failing()
            raise self.failing.pop(0)
        self.written.append((call, value))


@pytest.fixture
def queue() -> Recorder:
    return Recorder()


@pytest.fixture
def writer(queue: Recorder) -> Iterator[EventWriter]:
    """A writer that is not started: a test fills it, then starts and stops it."""
    return EventWriter(queue, Supervisor())  # type: ignore[arg-type]


@pytest.fixture
async def lease(new_job: Callable[..., NewJob]) -> Lease:
    async with Queue() as stored:
        await stored.jobs.submit(new_job(), b"accepted")
        return stored.lease()


def write_all(writer: EventWriter) -> None:
    writer.start()
    writer.stop(timeout=20)


def test_a_checkpoint_comes_after_the_events_before_it_and_before_the_job_is_released(writer, queue, lease) -> None:
    outbox = writer.open(lease)
    writer.put(outbox, b"one")
    writer.checkpoint(outbox, b"old")
    writer.put(outbox, b"two")
    writer.checkpoint(outbox, b"new")
    writer.release(outbox)
    write_all(writer)
    assert queue.written == [("append", (b"one", b"two")), ("checkpoint", b"new"), ("release", None)]


def test_a_job_that_has_ended_needs_no_checkpoint(writer, queue, lease) -> None:
    outbox = writer.open(lease)
    writer.checkpoint(outbox, b"state")
    writer.settle(outbox, b"done", JobState.COMPLETED)
    write_all(writer)
    assert queue.written == [("settle", (b"done",))]
    assert outbox.closed.is_set()


def test_a_checkpoint_that_could_not_be_written_is_written_later(writer, queue, lease) -> None:
    queue.failing.append(Unavailable("away"))
    outbox = writer.open(lease)
    writer.checkpoint(outbox, b"state")
    write_all(writer)
    assert queue.written == [("checkpoint", b"state")]


def test_nothing_is_written_for_a_lease_that_is_lost(writer, queue, lease) -> None:
    queue.failing.append(LeaseLost("stale"))
    outbox = writer.open(lease)
    writer.checkpoint(outbox, b"state")
    writer.put(outbox, b"one")
    write_all(writer)
    writer.checkpoint(outbox, b"later")
    assert queue.written == []
    assert outbox.lost


def test_the_last_events_go_with_the_terminal_one(writer, queue, lease) -> None:
    outbox = writer.open(lease)
    for number in range(BATCH + 2):
        writer.put(outbox, b"%d" % number)
    writer.settle(outbox, b"done", JobState.COMPLETED)
    write_all(writer)
    first = tuple(b"%d" % number for number in range(BATCH))
    assert queue.written == [("append", first), ("settle", (b"64", b"65", b"done"))]


def test_events_that_were_sent_without_an_answer_are_sent_again_just_so(writer, queue, lease) -> None:
    """The queue counts a batch once however often it is sent, and knows it by its content."""
    outbox = writer.open(lease)
    writer.put(outbox, b"one")

    def grow() -> None:
        writer.put(outbox, b"two")
        writer.settle(outbox, b"done", JobState.COMPLETED)

    queue.failing.append(Unavailable("away"))
    queue.when_failing = grow
    write_all(writer)
    assert queue.written == [("append", (b"one",)), ("settle", (b"two", b"done"))]


def test_a_lease_that_is_lost_while_an_answer_is_awaited_harms_no_other(writer, queue, lease) -> None:
    first, second = writer.open(lease), writer.open(replace(lease, token=lease.token + 1))
    writer.put(second, b"one")
    queue.failing += [Unavailable("away"), LeaseLost("stale")]

    def meanwhile() -> None:
        if len(queue.failing) == 2:
            writer.put(first, b"two")
        else:
            writer.drop(second)

    queue.when_failing = meanwhile
    write_all(writer)
    assert (first.lost, second.lost, queue.written) == (True, True, [])


def test_a_job_whose_log_is_full_ends_without_what_is_left(writer, queue, lease) -> None:
    outbox = writer.open(lease)
    writer.put(outbox, b"one")
    writer.settle(outbox, b"done", JobState.COMPLETED)
    queue.failing.append(Overloaded("full"))
    write_all(writer)
    assert queue.written == [("settle", (b"done",))]


def test_a_job_that_the_queue_fails_for_holds_up_no_other_and_is_given_up(writer, queue, lease) -> None:
    neighbour = replace(lease, job=replace(lease.job, job_id="neighbour"))

    def fail(of: Lease, _: list[bytes]) -> None:
        if of is lease:
            failed.append(of)
            raise QueueFailed("a damaged key")
        queue.written.append(("append", of.job.job_id))

    failed: list[Lease] = []
    queue.append = fail
    damaged, sound = writer.open(lease), writer.open(neighbour)
    for outbox in (damaged, sound):
        writer.put(outbox, b"one")
    write_all(writer)
    assert queue.written == [("append", "neighbour")]
    assert len(failed) == FAILURES_IN_A_ROW
    assert damaged.lost
    assert not sound.lost


def test_a_job_that_the_queue_failed_for_once_is_written(writer, queue, lease) -> None:
    queue.failing += [QueueFailed("an error that nobody knows")] * (FAILURES_IN_A_ROW - 1)
    outbox = writer.open(lease)
    writer.put(outbox, b"one")
    write_all(writer)
    assert queue.written == [("append", (b"one",))]
    assert not outbox.lost


def test_a_server_that_is_away_holds_up_the_jobs_of_no_other(writer, queue, lease) -> None:
    """Its job comes first and stays unwritten until the others' are written."""
    away, there = (replace(lease, job=replace(lease.job, job_id="0" * 32 + suffix)) for suffix in ("01", ""))
    tries: list[str] = []

    def settle(lease: Lease, event: bytes, state: JobState, events: Sequence[bytes] = ()) -> None:
        tries.append(lease.job.job_id)
        if lease is away and there.job.job_id not in tries:
            raise Unavailable("away")
        queue.written.append(("settle", event))

    queue.settle = settle
    for each, event in ((away, b"away"), (there, b"there")):
        writer.settle(writer.open(each), event, JobState.COMPLETED)
    write_all(writer)
    assert queue.written == [("settle", b"there"), ("settle", b"away")]
