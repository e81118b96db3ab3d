"""A task: one explanation on the engine, from its first request to its end."""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sagittal.engine.composition import Part
from sagittal.engine.memo import Recollection, ScoreMemo
from sagittal.engine.requests import Evaluate, Inspect, OutOfBudget, Scores

INTERACTIVE_WEIGHT = 32.0
"""Weight of an interactive task; a batch task has weight 1."""

MEASURING_SHARE = 0.2
"""Maximum share of the time to a deadline that the search leaves for measurements."""

STRETCHED = 1.5
"""Factor by which a batch may exceed its size if it then holds the rest of a request: a small last batch costs more
per row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of a task."""

    evaluations: int | None = None
    """Maximum number of model evaluations without measurements; None for no limit."""
    deadline: float | None = None
    """Value of `time.monotonic()` by which search and measurements must end; None for no limit."""
    measurements: int = 0
    """Evaluations needed to measure the result; the search leaves time for them before the deadline."""


@dataclass(slots=True)
class Usage:
    """Resources that a task has used."""

    evaluations: int = 0
    """Model evaluations, including those with gradient and those for metrics."""
    gradient_evaluations: int = 0
    metric_evaluations: int = 0
    remembered: int = 0
    """Evaluations that were answered from memory. They count towards budgets like others, so that the result of a
    search does not depend on earlier requests."""


class TaskCancelled(Exception):
    """The task was cancelled."""


@dataclass(slots=True, kw_only=True, eq=False)
class Task:
    """A generator of requests and events, with its state in the engine."""

    steps: Generator[Any, Any, Any]
    """Requests are answered; every other yielded value is an event, for `on_event`."""
    on_event: Callable[[Any], None] = lambda _event: None
    """Called on the engine's thread with each event."""
    on_end: Callable[[BaseException | None], None] = lambda _error: None
    """Called once on the engine's thread: None for success, TaskCancelled, or the error that ended the task."""
    budget: Budget = field(default_factory=Budget)
    weight: float = 1.0
    """Service relative to other tasks; see INTERACTIVE_WEIGHT."""
    usage: Usage = field(default_factory=Usage)
    pending: Evaluate | Inspect[Any] | None = None
    """The request to be run."""
    batches: int = 0
    """Batches with rows of this task, and calls with the model."""
    device_seconds: float = 0.0
    """Share of the time of those batches and calls, by rows, in seconds."""
    asked: int = 0
    """Rows of the request that are already in a batch."""
    answers: list[Scores] = field(default_factory=list)
    served: float = 0.0
    """Served rows divided by the weight: the task with the smallest value goes first."""
    ended: bool = False
    clock: Callable[[], float] = time.monotonic
    recollection: Recollection | None = None
    """The known part of the original request; the pending request is then the rest."""
    _memo: ScoreMemo | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _began: float = 0.0
    _used_before: int = 0
    """Evaluations of an earlier attempt."""

    def cancel(self) -> None:
        """Ends the task before its next batch. Safe from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether cancellation was requested."""
        return self._cancelled.is_set()

    @property
    def ready(self) -> bool:
        """Whether its pending request can run now."""
        request = self.pending
        if isinstance(request, Evaluate):
            return self._left > 0
        return request is not None and request.ready()

    def start(self) -> None:
        """Runs the generator to its first request."""
        self._began, self._used_before = self.clock(), self.usage.evaluations
        self._advance(lambda: next(self.steps))

    @property
    def remembered(self) -> bool:
        """Whether the pending request can be answered from memory alone."""
        return self.recollection is not None and self.recollection.rest is None

    def stop_overdue(self) -> None:
        """Ends the pending request if its deadline has passed, even if parts were evaluated."""
        request = self.pending
        if isinstance(request, Evaluate) and self._is_overdue(request):
            self.answers = []
            self._advance(lambda: self.steps.throw(OutOfBudget("deadline")))

    def look_up(self, memo: ScoreMemo, unit: int) -> None:
        """Looks up the pending request, once; the rest of it is then pending."""
        if self._memo is None and isinstance(self.pending, Evaluate):
            self._memo, self.recollection = memo, memo.recall(self.pending, unit)
            if self.recollection is not None and self.recollection.rest is not None:
                self.pending = self.recollection.rest

    def answer_remembered(self) -> None:
        """Resumes with an answer from memory alone."""
        self._complete(None)

    def first_part(self, room: int, unit: int = 1) -> Part:
        """Moves rows of the pending request into an empty batch: whole units, or the rest if it is smaller."""
        left = self._left
        most = left if left <= STRETCHED * room else room
        return self._take(most - most % unit or left)

    def next_part(self, room: int, unit: int = 1) -> Part | None:
        """Moves up to `room` rows of the pending request into a non-empty batch: whole units, or none."""
        rows = min(self._left, room)
        return self._take(rows - rows % unit) if rows >= unit else None

    @property
    def _left(self) -> int:
        """Number of rows of the pending request that are in no batch yet."""
        return len(self.pending.masks) - self.asked if isinstance(self.pending, Evaluate) else 0

    def _take(self, rows: int) -> Part:
        if not isinstance(self.pending, Evaluate):
            raise TypeError("the task has no request to evaluate")
        part = Part(self.pending, self.asked, self.asked + rows)
        self.asked = part.stop
        return part

    def expects(self, part: Part) -> bool:
        """Returns whether it waits for a part: its request may have ended since the part was taken."""
        return not self.ended and self.pending is part.request

    def answer(self, part: Part, scores: Scores) -> None:
        """Stores the scores of a part; with the last part the generator resumes."""
        self._count(part.rows, part.rows if part.request.gradient else 0, part.rows if part.request.metric else 0)
        self.answers.append(scores)
        if part.stop == len(part.request.masks):
            whole = join(self.answers)
            self.answers = []
            self._complete(whole)

    def _complete(self, scores: Scores | None) -> None:
        """Resumes with the answer to the original request, given the scores of its evaluated rest."""
        recollection, whole = self.recollection, scores
        if recollection is not None:
            known = len(recollection.known)
            self.usage.evaluations += known
            self.usage.remembered += known
            self.usage.metric_evaluations += known if recollection.request.metric else 0
            if scores is not None and self._memo is not None:
                self._memo.remember(recollection, scores)
            whole = recollection.complete(scores)
        self._advance(lambda: self.steps.send(whole))

    def answer_inspection(self, result: object) -> None:
        """Resumes with the result of a call with the model."""
        request = self.pending
        if isinstance(request, Inspect):
            self._count(request.evaluations, request.gradient_evaluations, 0)
            self.served += request.rows / self.weight
        self._advance(lambda: self.steps.send(result))

    def fail(self, error: BaseException) -> None:
        """Ends the task with an error."""
        if not self.ended:
            self.steps.close()
            self._end(error)

    def charge(self, seconds: float) -> None:
        """Records a batch or a call with the model, and the task's share of its time."""
        self.batches += 1
        self.device_seconds += seconds

    def _count(self, rows: int, gradient: int, metric: int) -> None:
        self.usage.evaluations += rows
        self.usage.gradient_evaluations += gradient
        self.usage.metric_evaluations += metric
        self.served += rows / self.weight

    def _advance(self, resume: Callable[[], object]) -> None:
        """Resumes the generator until it has a request that its budget allows, or ends."""
        self.pending, self.asked, self.recollection, self._memo = None, 0, None, None
        try:
            item = resume()
            while not (isinstance(item, Evaluate | Inspect) and self._affordable(item)):
                item = self._respond(item)
        except StopIteration:
            self._end(None)
        except Exception as error:  # noqa: BLE001 - an error of an explainer ends its task, not the engine
            self._end(error)
        else:
            self.pending = item

    def _respond(self, item: object) -> object:
        if isinstance(item, Evaluate | Inspect):
            return self.steps.throw(OutOfBudget(self._exceeded(item)))
        self.on_event(item)
        return next(self.steps)

    def _affordable(self, request: Evaluate | Inspect[Any]) -> bool:
        return not self._exceeded(request)

    def _exceeded(self, request: Evaluate | Inspect[Any]) -> str:
        """Returns the name of the limit that the request would exceed; empty if there is none."""
        if self._is_overdue(request):
            return "deadline"
        if isinstance(request, Evaluate) and request.metric:
            return ""
        rows = len(request.masks) if isinstance(request, Evaluate) else request.evaluations
        searched = self.usage.evaluations - self.usage.metric_evaluations
        if self.budget.evaluations is not None and searched + rows > self.budget.evaluations:
            return "evaluations"
        return ""

    def _is_overdue(self, request: Evaluate | Inspect[Any]) -> bool:
        """Returns whether a deadline leaves no time for a request."""
        deadline = self.budget.deadline
        if deadline is None or (isinstance(request, Evaluate) and request.report):
            return False
        measures = isinstance(request, Evaluate) and request.metric
        return self.clock() >= (deadline if measures else deadline - self._measuring_seconds(deadline))

    def _measuring_seconds(self, deadline: float) -> float:
        """Returns the expected time of the measurements, at the task's pace so far."""
        evaluated = self.usage.evaluations - self._used_before
        if not evaluated:
            return 0.0
        pace = (self.clock() - self._began) / evaluated
        return min(self.budget.measurements * pace, MEASURING_SHARE * (deadline - self._began))

    def _end(self, error: BaseException | None) -> None:
        self.ended, self.pending = True, None
        self.on_end(error)


def join(answers: list[Scores]) -> Scores:
    """Returns the scores of consecutive parts as one."""
    if len(answers) == 1:
        return answers[0]
    return Scores(
        torch.cat([scores.target for scores in answers]),
        torch.cat([scores.top_class for scores in answers]),
        torch.cat([scores.top_score for scores in answers]),
        _join_optional([scores.gradient for scores in answers]),
        _join_optional([scores.probabilities for scores in answers]),
    )


def _join_optional(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
