"""The engine: continuous batching for explanations.

Each step gathers requests of the running tasks into one batch that fits the device, runs it, and returns each task its
part. A task that starts or ends changes the next batch, never the current one. The task with the least service relative
to its weight goes first. Interactive tasks have a larger weight, and no task starves.

On CUDA the engine starts the next batch before it reads the scores of the one that runs, so that the device never waits
for explainers while other tasks have rows.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sagittal.engine.composition import Part
from sagittal.engine.evaluator import EvaluationFailed, Evaluator, ModelUnreachable
from sagittal.engine.memo import ScoreMemo
from sagittal.engine.requests import Evaluate, Inspect, Scores
from sagittal.engine.scoring import Launched
from sagittal.engine.task import Task, TaskCancelled, join

NOTHING_READY = 0.005
"""Pause before the next check if every task waits for something other than the device, in seconds."""

DEVICE_LOST = torch.AcceleratorError
"""Error after which this process cannot use its GPU any more: a step raises it, and the process must start again."""

RECALL_SECONDS = 0.01
"""Time per step for answers from memory, before the device gets its next batch, in seconds."""


@dataclass(slots=True)
class EngineCounters:
    """Counters of an engine since its construction."""

    batches: int = 0
    rows: int = 0
    """Masked images evaluated."""
    out_of_memory: int = 0
    """Batches that were halved and run again."""
    busy: float = 0.0
    """Time of batches and of calls with the model, in seconds: on CUDA by the device's clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A batch that was started, whose scores are not read yet."""

    batch: Sequence[tuple[Task, Part]]
    read: Callable[[], tuple[Sequence[Scores | Exception], float]]
    """Waits for the batch; returns the answer to each part, and the time of the batch in seconds."""


class Engine:
    """Runs tasks on one evaluator. `submit` is safe from any thread; `step` belongs to one."""

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        batch_size: int = 16,
        unit: int = 1,
        reduced: bool = False,
        depth: int = 1,
        memo: ScoreMemo | None = None,
    ) -> None:
        """Constructs an engine.

        Args:
            evaluator: The model to run.
            batch_size: Maximum number of masked images in a batch. A request may exceed it to avoid a small last batch.
            unit: Rows that share a batch come in multiples of this; the rest of a request runs alone. Each row is thus
                always computed in the same way, whatever other tasks run, without padding.
            reduced: Whether the model runs in reduced precision for requests that are not exact. Exact requests then
                share no batch with others.
            depth: Number of batches on the device: 2 starts a batch before the scores of the one before are read. It
                requires an evaluator with `launch`.
            memo: Memory of evaluated masked images, for this evaluator only; None for none.
        """
        self.evaluator = evaluator
        self.batch_size = batch_size
        self.unit = unit
        self.reduced = reduced
        self.depth = depth
        self.memo = memo
        self.counters = EngineCounters()
        self._tasks: list[Task] = []
        self._arrived: deque[Task] = deque()
        self._batches: deque[Running] = deque()
        self._wake = threading.Event()

    @property
    def running(self) -> int:
        """Number of tasks that have not ended."""
        return len(self._tasks) + len(self._arrived)

    def submit(self, task: Task) -> None:
        """Adds a task to the next step."""
        self._arrived.append(task)
        self._wake.set()

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for a task if there is none; returns whether there is one."""
        if self.running == 0:
            self._wake.wait(timeout)
        self._wake.clear()
        return self.running > 0

    def step(self) -> bool:
        """Starts one batch or runs one inspection, and reads the batch that is due; returns whether there was work.

        Raises DEVICE_LOST.
        """
        self._admit()
        self._drop()
        for task in self._tasks:
            task.stop_overdue()
        self._recall()
        order = sorted((task for task in self._tasks if task.ready), key=lambda task: task.served)
        worked = bool(order or self._batches)
        if order:
            self._serve(order)
        if len(self._batches) >= self.depth or (self._batches and not order):
            self._finish(self._batches.popleft())
        if self._tasks and not worked:
            time.sleep(NOTHING_READY)
        self._drop()
        while self._batches and not self._tasks:
            self._finish(self._batches.popleft())  # nobody waits for it, but the device must be idle without tasks
        return worked

    def run(self, task: Task) -> None:
        """Runs steps until the task has ended, along with other tasks; for callers without an engine thread."""
        self.submit(task)
        while not task.ended:
            self.step()

    def _admit(self) -> None:
        """Starts the tasks that arrived. They start level with running tasks: neither behind nor ahead."""
        level = min((task.served for task in self._tasks), default=0.0)
        while self._arrived:
            task = self._arrived.popleft()
            task.served = level
            self._tasks.append(task)
            if not task.cancelled:
                task.start()

    def _drop(self) -> None:
        for task in self._tasks:
            if task.cancelled and not task.ended:
                task.fail(TaskCancelled("the task was cancelled"))
        self._tasks = [task for task in self._tasks if not task.ended]

    def _recall(self) -> None:
        """Looks up requests in memory and answers known ones, for a bounded time."""
        if self.memo is None:
            return
        until = time.perf_counter() + RECALL_SECONDS
        for task in self._tasks:
            task.look_up(self.memo, self._unit)
            while task.remembered and not task.cancelled and time.perf_counter() < until:
                task.answer_remembered()
                task.look_up(self.memo, self._unit)

    def _serve(self, order: Sequence[Task]) -> None:
        first = order[0]
        if first.remembered:
            first.answer_remembered()
        elif isinstance(first.pending, Inspect):
            self._inspect(first)
        else:
            self._start(self._batch(order))

    def _batch(self, order: Sequence[Task]) -> list[tuple[Task, Part]]:
        """Fills a batch with rows of the first task's mode: with or without gradient, exact or not."""
        first, part = order[0], order[0].first_part(self.batch_size, self._unit)
        batch, room = [(first, part)], self.batch_size - part.rows
        if part.rows % self._unit:
            return batch
        for task in order[1:]:
            if task.remembered or not self._same_mode(part.request, task.pending):
                continue
            if (other := task.next_part(room, self._unit)) is not None:
                batch.append((task, other))
                room -= other.rows
        return batch

    @property
    def _unit(self) -> int:
        """The unit, if a batch has room for one: out-of-memory may have reduced the batch size."""
        return self.unit if self.unit <= self.batch_size else 1

    def _same_mode(self, first: object, other: object) -> bool:
        if not isinstance(first, Evaluate) or not isinstance(other, Evaluate):
            return False
        return first.gradient == other.gradient and (not self.reduced or first.exact == other.exact)

    def _inspect(self, task: Task) -> None:
        request, begun = task.pending, time.perf_counter()
        answer: object = None
        failure: Exception | None = None
        try:
            answer = self.evaluator.inspect(request)  # type: ignore[arg-type]
        except DEVICE_LOST:
            raise
        except Exception as error:  # noqa: BLE001 - an error of a method fails its task, not the engine
            failure = error
        seconds = time.perf_counter() - begun
        self.counters.busy += seconds
        task.charge(seconds)
        if failure is not None:
            task.fail(failure)
        else:
            task.answer_inspection(answer)

    def _start(self, batch: Sequence[tuple[Task, Part]]) -> None:
        """Starts a batch; without a device that runs beside this program, it has ended on return."""
        self.counters.batches += 1
        self.counters.rows += sum(part.rows for _, part in batch)
        self._batches.append(self._launched(batch) if self.depth > 1 else self._ended(batch))

    def _launched(self, batch: Sequence[tuple[Task, Part]]) -> Running:
        """Returns a batch that runs on the device; one that cannot be started is evaluated part by part instead."""
        try:
            launched: Launched = self.evaluator.launch([part for _, part in batch])  # type: ignore[attr-defined]
        except DEVICE_LOST:
            raise
        except Exception:  # noqa: BLE001 - it is raised again for the part that causes it
            return self._ended(batch)

        def read() -> tuple[Sequence[Scores | Exception], float]:
            scores = launched.read()
            return scores, launched.seconds

        return Running(batch, read)

    def _ended(self, batch: Sequence[tuple[Task, Part]]) -> Running:
        begun = time.perf_counter()
        answers = self._run(batch)
        seconds = time.perf_counter() - begun
        return Running(batch, lambda: (answers, seconds))

    def _finish(self, running: Running) -> None:
        """Reads the scores of a batch, and gives each task its part."""
        answers, seconds = running.read()
        self.counters.busy += seconds
        rows = sum(part.rows for _, part in running.batch)
        for (task, part), answer in zip(running.batch, answers, strict=True):
            task.charge(seconds * part.rows / rows)
            if not task.expects(part):
                continue  # it ended, or its deadline passed, while the batch ran
            if isinstance(answer, Exception):
                task.fail(answer)
            elif fault := _fault(answer):
                task.fail(fault)
            else:
                task.answer(part, answer)

    def _run(self, batch: Sequence[tuple[Task, Part]]) -> list[Scores | Exception]:
        """Evaluates a batch. If it fails, evaluates each part alone, so that a task fails only by its own fault."""
        parts = [part for _, part in batch]
        try:
            return list(self.evaluator.evaluate(parts))
        except torch.cuda.OutOfMemoryError:
            return self._run_halves(batch)
        except DEVICE_LOST:
            raise
        except ModelUnreachable as away:
            # No part is at fault, and each part alone would time out again.
            return [away for _ in batch]
        except Exception as error:  # noqa: BLE001 - a model may raise anything; the tasks that caused it fail
            if len(batch) == 1:
                return [error if isinstance(error, EvaluationFailed) else _wrap(error)]
            return [answer for pair in batch for answer in self._run([pair])]

    def _run_halves(self, batch: Sequence[tuple[Task, Part]]) -> list[Scores | Exception]:
        """Halves the batch size permanently after out-of-memory, and runs the batch in smaller pieces."""
        self.counters.out_of_memory += 1
        torch.cuda.empty_cache()
        rows = sum(part.rows for _, part in batch)
        if rows == 1:
            return [EvaluationFailed("the device has not enough memory for one image")]
        self.batch_size = max(1, min(self.batch_size, rows) // 2)
        return [self._run_pieces(task, part) for task, part in batch]

    def _run_pieces(self, task: Task, part: Part) -> Scores | Exception:
        pieces: list[Scores] = []
        start = part.start
        while start < part.stop:
            # Smaller pieces may also run out of memory, and halve the batch size again.
            piece = Part(part.request, start, min(part.stop, start + self.batch_size))
            answer = self._run([(task, piece)])[0]
            if isinstance(answer, Exception):
                return answer
            pieces.append(answer)
            start = piece.stop
        return join(pieces)


def _fault(scores: Scores) -> EvaluationFailed | None:
    """Returns the error of unusable scores; None if they are usable."""
    if not bool(torch.isfinite(scores.target).all()):
        return EvaluationFailed("the model returned NaN or infinity")
    if not scores.finite:
        return EvaluationFailed("the model's gradient is NaN or infinity")
    return None


def _wrap(error: Exception) -> EvaluationFailed:
    failed = EvaluationFailed(f"the model raised {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
