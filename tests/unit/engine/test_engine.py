"""The engine answers every request once, in order, whoever else runs."""

import time
from contextlib import suppress
from dataclasses import replace

import known_models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.engine import Budget, Engine, EvaluationFailed, Task, TaskCancelled, TorchEvaluator
from sagittal.engine.requests import Evaluate, Inspect, OutOfBudget, Scores, Subject
from sagittal.engine.task import STRETCHED
from sagittal.explain.events import Progress


class Recorder:
    """An evaluator that answers each row with its mask's mean and keeps what it was given."""

    supports_gradients = True

    def __init__(self, limit=None):
        self.batches, self.parts, self.limit = [], [], limit

    def evaluate(self, parts):
        rows = sum(part.rows for part in parts)
        if self.limit is not None and rows > self.limit:
            raise torch.cuda.OutOfMemoryError("by construction")
        self.batches.append(rows)
        self.parts.append([part.rows for part in parts])
        return [self._scores(part) for part in parts]

    def inspect(self, request):
        return request.call(None)

    @staticmethod
    def _scores(part):
        masks = part.request.masks[part.start : part.stop]
        means = masks.mean((-2, -1))
        return Scores(
            means, torch.zeros(len(masks), dtype=torch.int64), means, masks if part.request.gradient else None
        )


class Beside(Recorder):
    """A recorder whose batches run beside the program: their scores can be read later."""

    def __init__(self, limit=None):
        super().__init__(limit)
        self.running, self.most, self.log = 0, 0, []

    def launch(self, parts):
        scores = self.evaluate(parts)
        self.running += 1
        self.most = max(self.most, self.running)
        self.log.append("start")
        return self.Batch(self, scores)

    class Batch:
        seconds = 0.25

        def __init__(self, recorder, scores):
            self.recorder, self.scores = recorder, scores

        def read(self):
            self.recorder.running -= 1
            self.recorder.log.append("read")
            return self.scores


SUBJECT = Subject(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), 0)


def ask(rows, *, gradient=False, value=1.0, metric=False, exact=False):
    masks = torch.full((rows, 4, 4), float(value)) + torch.arange(rows).view(-1, 1, 1) / 1000
    return Evaluate(subject=SUBJECT, masks=masks, gradient=gradient, metric=metric, exact=exact)


def finished(engine, tasks):
    ends = {}
    for name, task in tasks.items():
        task.on_end = lambda error, name=name: ends.setdefault(name, error)
        engine.submit(task)
    while engine.step():
        pass
    return ends


@given(
    jobs=st.lists(
        st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=5), min_size=1, max_size=6
    ),
    batch_size=st.integers(1, 17),
    unit=st.sampled_from((1, 2, 4)),
    depth=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_request_is_answered_once_and_in_order(jobs, batch_size, unit, depth):
    seen = {number: [] for number in range(len(jobs))}

    def steps(number, requests):
        for index, (rows, gradient) in enumerate(requests):
            request = ask(rows, gradient=gradient, value=number + index / 10)
            scores = yield request
            torch.testing.assert_close(scores.target, request.masks.mean((-2, -1)))
            assert (scores.gradient is not None) == gradient
            seen[number].append(index)

    recorder = Beside()
    engine = Engine(recorder, batch_size=batch_size, unit=unit, depth=depth)
    ends = finished(engine, {number: Task(steps=steps(number, job)) for number, job in enumerate(jobs)})
    assert recorder.most <= depth
    assert all(error is None for error in ends.values()), ends
    assert seen == {number: list(range(len(job))) for number, job in enumerate(jobs)}
    assert max(recorder.batches) <= STRETCHED * batch_size
    assert sum(recorder.batches) == sum(rows for job in jobs for rows, _ in job)
    if unit <= batch_size:
        for parts in recorder.parts:
            assert all(rows % unit == 0 for rows in parts) or (len(parts) == 1 and parts[0] < unit)


def test_a_request_leaves_no_small_batch_behind():
    def steps():
        yield ask(20)

    recorder = Recorder()
    finished(Engine(recorder, batch_size=16), {0: Task(steps=steps())})
    assert recorder.batches == [20]


def test_tasks_share_batches():
    def steps():
        for _ in range(3):
            yield ask(4)

    recorder = Recorder()
    finished(Engine(recorder, batch_size=16), {number: Task(steps=steps()) for number in range(4)})
    assert recorder.batches == [16, 16, 16]


@pytest.mark.parametrize("reduced", [False, True])
def test_an_exact_request_does_not_change_the_precision_of_others(reduced):
    recorder = Recorder()
    engine = Engine(recorder, batch_size=16, reduced=reduced)

    def steps(*, exact):
        yield ask(4, exact=exact)

    finished(engine, {exact: Task(steps=steps(exact=exact)) for exact in (False, True)})
    assert recorder.parts == ([[4], [4]] if reduced else [[4, 4]])


def test_a_task_with_someone_waiting_goes_first_and_none_starves():
    order = []

    def steps(name, count):
        for _ in range(count):
            yield ask(8)
            order.append(name)

    engine = Engine(Recorder(), batch_size=8)
    tasks = {"batch": Task(steps=steps("batch", 6)), "interactive": Task(steps=steps("interactive", 6), weight=4.0)}
    finished(engine, tasks)
    assert order.index("batch") < 6, "the batch task waited for all of the interactive one"
    assert order[:6].count("interactive") >= 4


@pytest.mark.parametrize("at", range(4))
def test_cancellation_takes_effect_within_one_step(at):
    closed = []

    def steps():
        try:
            for _ in range(3):
                yield ask(2)
        finally:
            closed.append(True)

    engine, ends = Engine(Recorder(), batch_size=2), []
    task = Task(steps=steps(), on_end=ends.append)
    engine.submit(task)
    for _ in range(at):
        engine.step()
    task.cancel()
    engine.step()
    engine.step()
    assert task.ended
    assert engine.running == 0
    assert len(ends) == 1
    assert ends[0] is None if at == 3 else isinstance(ends[0], TaskCancelled)
    assert closed or at == 0


def test_a_budget_stops_the_search_but_not_the_measurement():
    told = []

    def steps():
        try:
            while True:
                yield ask(4)
        except OutOfBudget as spent:
            told.append(spent.limit)
        yield ask(50, metric=True)

    task = Task(steps=steps(), budget=Budget(evaluations=10))
    assert finished(Engine(Recorder()), {"task": task}) == {"task": None}
    assert told == ["evaluations"]
    assert (task.usage.evaluations, task.usage.metric_evaluations) == (58, 50)


def test_a_deadline_stops_the_search():
    def steps():
        while True:
            yield ask(1)

    task = Task(steps=steps(), budget=Budget(deadline=time.monotonic() - 1))
    ends = finished(Engine(Recorder()), {"task": task})
    assert isinstance(ends["task"], OutOfBudget)
    assert ends["task"].limit == "deadline"


class Clock(Recorder):
    """An evaluator each of whose rows takes a second, and the clock that says so."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def __call__(self):
        return self.now

    def evaluate(self, parts):
        self.now += sum(part.rows for part in parts)
        return super().evaluate(parts)


def test_a_deadline_stops_measurements_between_two_batches():
    told = []

    def steps():
        yield ask(4)
        try:
            yield ask(300, metric=True)
        except OutOfBudget as spent:
            told.append(spent.limit)

    clock = Clock()
    task = Task(steps=steps(), budget=Budget(deadline=24.0), clock=clock)
    assert finished(Engine(clock, batch_size=10), {"task": task}) == {"task": None}
    assert told == ["deadline"]
    assert clock.batches == [4, 10, 10]


def test_what_is_needed_to_report_a_finding_is_evaluated_after_the_deadline():
    def steps():
        with pytest.raises(OutOfBudget):
            yield ask(4)
        scores = yield replace(ask(1, metric=True), report=True)
        assert len(scores.target) == 1

    clock = Clock()
    clock.now = 2.0
    task = Task(steps=steps(), budget=Budget(deadline=1.0), clock=clock)
    assert finished(Engine(clock), {"task": task}) == {"task": None}


@pytest.mark.parametrize(("measurements", "searched"), [(0, 100), (10, 90), (50, 80)])
def test_a_search_leaves_time_for_measurements_before_the_deadline(measurements, searched):
    def steps():
        with suppress(OutOfBudget):
            while True:
                yield ask(1)
        yield ask(5, metric=True)

    clock = Clock()
    budget = Budget(deadline=100.0, measurements=measurements)
    task = Task(steps=steps(), budget=budget, clock=clock)
    ends = finished(Engine(clock), {"task": task})
    assert task.usage.evaluations - task.usage.metric_evaluations == searched
    assert (ends["task"] is None) == (measurements > 0)


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    recorder = Recorder(limit=3)
    engine = Engine(recorder, batch_size=16)

    def steps():
        request = ask(20)
        scores = yield request
        torch.testing.assert_close(scores.target, request.masks.mean((-2, -1)))

    assert finished(engine, {"task": Task(steps=steps())}) == {"task": None}
    assert engine.batch_size <= 3
    assert engine.counters.out_of_memory > 0
    assert sum(recorder.batches) == 20


def test_the_next_batch_starts_before_the_scores_of_the_running_one_are_read():
    def steps():
        for _ in range(3):
            yield ask(8)

    recorder = Beside()
    engine = Engine(recorder, batch_size=8, depth=2)
    assert finished(engine, {number: Task(steps=steps()) for number in range(2)}) == {0: None, 1: None}
    assert recorder.log[:6] == ["start", "start", "read", "start", "read", "start"]
    assert engine.counters.busy == 0.25 * 6, "the device's own clock counts"
    assert engine.counters.rows == 48


def test_one_task_alone_is_not_held_up_by_a_batch_that_never_comes():
    def steps():
        for _ in range(3):
            yield ask(8)

    recorder = Beside()
    assert finished(Engine(recorder, batch_size=8, depth=2), {0: Task(steps=steps())}) == {0: None}
    assert recorder.log == ["start", "read"] * 3


def test_a_task_that_is_cancelled_while_its_batch_runs_ends_and_the_others_are_answered():
    def steps():
        for _ in range(2):
            yield ask(4)

    recorder, ends = Beside(), []
    engine = Engine(recorder, batch_size=8, depth=2)
    cancelled, other = Task(steps=steps(), on_end=ends.append), Task(steps=steps())
    engine.submit(cancelled)
    engine.submit(other)
    engine.step()
    assert recorder.running == 1
    cancelled.cancel()
    while engine.step():
        pass
    assert isinstance(ends[0], TaskCancelled)
    assert other.usage.evaluations == 8
    assert recorder.running == 0


def test_nothing_runs_on_the_device_when_the_last_task_was_cancelled():
    def steps():
        yield ask(16)

    recorder = Beside()
    engine, task = Engine(recorder, batch_size=8, depth=3), Task(steps=steps())
    engine.submit(task)
    engine.step()
    assert recorder.running == 1
    task.cancel()
    engine.step()
    assert engine.running == recorder.running == 0


def test_a_deadline_that_passes_while_a_batch_runs_does_not_mix_up_answers():
    told = []

    def steps():
        try:
            yield ask(8)
        except OutOfBudget as spent:
            told.append(spent.limit)
        request = replace(ask(2, value=5.0, metric=True), report=True)
        scores = yield request
        torch.testing.assert_close(scores.target, request.masks.mean((-2, -1)))

    now = [0.0]
    recorder = Beside()
    task = Task(steps=steps(), budget=Budget(deadline=10.0), clock=lambda: now[0])
    engine, ends = Engine(recorder, batch_size=4, depth=3), []
    task.on_end = ends.append
    engine.submit(task)
    engine.step()
    engine.step()
    assert recorder.running == 2, "both halves of the first request run"
    now[0] = 11.0
    while engine.step():
        pass
    assert (told, ends) == (["deadline"], [None])
    assert recorder.batches == [4, 4, 2]


def test_out_of_memory_beside_a_running_batch_loses_nothing():
    recorder = Beside(limit=3)
    engine = Engine(recorder, batch_size=8, depth=2)

    def steps():
        for value in (1.0, 2.0):
            request = ask(10, value=value)
            scores = yield request
            torch.testing.assert_close(scores.target, request.masks.mean((-2, -1)))

    assert finished(engine, {number: Task(steps=steps()) for number in range(3)}) == dict.fromkeys(range(3))
    assert engine.batch_size <= 3
    assert sum(recorder.batches) == 60


@pytest.mark.parametrize("depth", [1, 2])
def test_a_lost_device_ends_the_step_and_not_a_job(depth):
    def lost(_parts):
        raise torch.AcceleratorError("by construction")

    recorder, ends = Beside(), []
    recorder.evaluate = lost
    engine = Engine(recorder, depth=depth)
    engine.submit(Task(steps=iter([ask(1)]), on_end=ends.append))
    with pytest.raises(torch.AcceleratorError):
        engine.step()
    assert ends == [], "another process runs the job"


@pytest.mark.parametrize("fault", ["raise", "shape", "nan"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_that_fails_on_one_job_fails_that_job_alone(fault, depth):
    evaluator = TorchEvaluator(module=known_models.Faulty(fault), device=torch.device("cpu"))
    good = Subject(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), 0)
    bad = Subject(torch.full((3, 8, 8), 200.0), torch.zeros(3, 8, 8), 0)

    def steps(subject):
        for _ in range(3):
            yield Evaluate(subject=subject, masks=torch.ones(2, 4, 4))

    tasks = {name: Task(steps=steps(subject)) for name, subject in (("good", good), ("bad", bad), ("other", good))}
    ends = finished(Engine(evaluator, depth=depth), tasks)
    assert ends["good"] is None
    assert ends["other"] is None
    assert isinstance(ends["bad"], EvaluationFailed)


def test_an_inspection_runs_alone_and_an_error_in_it_fails_its_task():
    def steps(call):
        result = yield Inspect(subject=SUBJECT, call=call, evaluations=3)
        assert result == 7

    def broken(_view):
        raise ValueError("by construction")

    tasks = {"good": Task(steps=steps(lambda _view: 7)), "bad": Task(steps=steps(broken))}
    ends = finished(Engine(Recorder()), tasks)
    assert ends["good"] is None
    assert isinstance(ends["bad"], ValueError)
    assert tasks["good"].usage.evaluations == 3


def test_an_inspection_may_return_an_error_which_its_task_handles():
    def steps():
        result = yield Inspect(subject=SUBJECT, call=lambda _view: ValueError("returned"))
        assert str(result) == "returned"

    assert finished(Engine(Recorder()), {"task": Task(steps=steps())}) == {"task": None}


def test_events_reach_their_task_only():
    seen = {"a": [], "b": []}

    def steps(fraction):
        yield ask(1)
        yield Progress(fraction)

    tasks = {name: Task(steps=steps(value), on_event=seen[name].append) for name, value in (("a", 0.1), ("b", 0.2))}
    finished(Engine(Recorder()), tasks)
    assert [event.fraction for event in seen["a"]] == [0.1]
    assert [event.fraction for event in seen["b"]] == [0.2]
