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
"""Share of the device that a task with someone waiting gets, relative to a batch task's 1."""

MEASURING_SHARE = 0.2
"""Largest share of the time to a deadline that the search leaves for measurements."""

STRETCHED = 1.5
"""How much larger than usual a batch may be if it then holds all that a request has left: a small last batch costs more
for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a task may use."""

    evaluations: int | None = None
    """Model evaluations, measurements not counted; None for no bound."""
    deadline: float | None = None
    """Time of `time.monotonic()` by which search and measurements must end; None for no bound."""
    measurements: int = 0
    """Evaluations that measuring the result will take; the search leaves time for them before the deadline."""


@dataclass(slots=True)
class Usage:
    """What a task has used."""

    evaluations: int = 0
    """Model evaluations, those with gradient and those for metrics included."""
    gradient_evaluations: int = 0
    metric_evaluations: int = 0
    remembered: int = 0
    """Of all evaluations, those that were answered from memory. Budgets count them like others, so that what a search
    finds does not depend on what was asked before."""


class TaskCancelled(Exception):
    """The task was cancelled."""


@dataclass(slots=True, kw_only=True, eq=False)
class Task:
    """A generator of requests and events, with what the engine knows of it."""

    steps: Generator[Any, Any, Any]
    """Requests are answered; whatever else is yielded is an event, for `on_event`."""
    on_event: Callable[[Any], None] = lambda _event: None
    """Called on the engine's thread with each event."""
    on_end: Callable[[BaseException | None], None] = lambda _error: None
    """Called once on the engine's thread: None for success, TaskCancelled, or the error that ended the task."""
    budget: Budget = field(default_factory=Budget)
    weight: float = 1.0
    """Share of the device relative to other tasks; see INTERACTIVE_WEIGHT."""
    usage: Usage = field(default_factory=Usage)
    pending: Evaluate | Inspect[Any] | None = None
    """The request that waits to be run."""
    batches: int = 0
    """Batches that had a part of it, and calls with the model."""
    device_seconds: float = 0.0
    """Its share of the time that they took, by rows."""
    asked: int = 0
    """Rows of it that are already in a batch."""
    answers: list[Scores] = field(default_factory=list)
    served: float = 0.0
    """Rows served over the weight: the task with the least goes first."""
    ended: bool = False
    clock: Callable[[], float] = time.monotonic
    recollection: Recollection | None = None
    """What is known of the pending request, which is then the rest of what was asked for."""
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
        """Whether cancellation was asked for."""
        return self._cancelled.is_set()

    @property
    def ready(self) -> bool:
        """Whether its pending request can run now."""
        request = self.pending
        return request is not None and (isinstance(request, Evaluate) or request.ready())

    def start(self) -> None:
        """Runs to the first request."""
        self._began, self._used_before = self.clock(), self.usage.evaluations
        self._advance(lambda: next(self.steps))

    @property
    def remembered(self) -> bool:
        """Whether the pending request can be answered from memory alone."""
        return self.recollection is not None and self.recollection.rest is None

    def stop_overdue(self) -> None:
        """Ends the pending request if its time is over, whatever was evaluated of it."""
        request = self.pending
        if isinstance(request, Evaluate) and self._is_overdue(request):
            self.answers = []
            self._advance(lambda: self.steps.throw(OutOfBudget("deadline")))

    def look_up(self, memo: ScoreMemo, unit: int) -> None:
        """Looks what is known of the pending request, once; what is then pending is the rest of it."""
        if self._memo is None and isinstance(self.pending, Evaluate):
            self._memo, self.recollection = memo, memo.recall(self.pending, unit)
            if self.recollection is not None and self.recollection.rest is not None:
                self.pending = self.recollection.rest

    def answer_remembered(self) -> None:
        """Goes on with an answer from memory alone."""
        self._complete(None)

    def first_part(self, room: int, unit: int = 1) -> Part:
        """Takes rows of the pending request into an empty batch: whole units, or what is left where that is less."""
        left = self._left
        most = left if left <= STRETCHED * room else room
        return self._take(most - most % unit or left)

    def next_part(self, room: int, unit: int = 1) -> Part | None:
        """Takes up to `room` rows of the pending request into a batch that has some: whole units, or nothing."""
        rows = min(self._left, room)
        return self._take(rows - rows % unit) if rows >= unit else None

    @property
    def _left(self) -> int:
        """Rows of the pending request that are in no batch yet."""
        return len(self.pending.masks) - self.asked if isinstance(self.pending, Evaluate) else 0

    def _take(self, rows: int) -> Part:
        if not isinstance(self.pending, Evaluate):
            raise TypeError("the task has no request to evaluate")
        part = Part(self.pending, self.asked, self.asked + rows)
        self.asked = part.stop
        return part

    def answer(self, part: Part, scores: Scores) -> None:
        """Takes the scores of a part; with the last one the generator goes on."""
        self._count(part.rows, part.rows if part.request.gradient else 0, part.rows if part.request.metric else 0)
        self.answers.append(scores)
        if part.stop == len(part.request.masks):
            whole = join(self.answers)
            self.answers = []
            self._complete(whole)

    def _complete(self, scores: Scores | None) -> None:
        """Goes on with the answer to what was asked, given that to what was evaluated of it."""
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
        """Takes the result of a call with the model."""
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
        """Takes note of a batch or a call with the model, and of its part of the time."""
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
        except Exception as error:  # noqa: BLE001 - whatever an explainer raises is the task's end, not the engine's
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
        """Names the limit that the request would break; empty where none."""
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
        """Whether a deadline leaves a request no time."""
        deadline = self.budget.deadline
        if deadline is None or (isinstance(request, Evaluate) and request.report):
            return False
        measures = isinstance(request, Evaluate) and request.metric
        return self.clock() >= (deadline if measures else deadline - self._measuring_seconds(deadline))

    def _measuring_seconds(self, deadline: float) -> float:
        """Returns the time that measurements are expected to take, at the pace of the task so far."""
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
