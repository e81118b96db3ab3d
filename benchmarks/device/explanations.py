"""Points 2, 3 and 6: explanations over bare passes, drift of the reduced precision, and cost of every method."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from device.bench import Bench, images, run_together
from device.results import Results, Value
from device.throughput import best
from sagittal.engine import Budget, Engine, Task
from sagittal.engine.composition import Part
from sagittal.engine.cuda.copies import upload
from sagittal.engine.requests import Scores
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.explain.events import Curve, CurveKind, Prediction
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black

EFFICIENCY, DRIFT, COST = "explanations over the bare model", "drift of the reduced precision", "cost"
"""Names of the points."""

Work = tuple[str, float, Callable[[], Value]]

TIMED = ("igos++", "minimal-sufficient-explanations", "rise")
"""Methods of point 2."""

NOT_PRICED = ("concepts", "evaluate-mask")
"""Methods that need more than an image."""

BUDGETS = {"minimal-sufficient-explanations": 1500, "structured-attention-graph": 1500}
"""Evaluations of methods without a natural end, for the cost."""


@cache
def _loaded(bench: Bench, *, full_precision: bool = False) -> LoadedModel:
    return bench.loaded(full_precision=full_precision)


def tasks_of(
    bench: Bench, loaded: LoadedModel, method: str, count: int, *, curves: bool = False, seed: int = 0
) -> tuple[list[Task], list[list[Any]]]:
    """Returns explanations of different images, and the events of each."""
    tasks, told = [], []
    dark = black(loaded.entry.preprocessing).to(loaded.device)
    for index, image in enumerate(images(loaded, count)):
        question = Question(image=upload(image, loaded.device), black=dark, seed=seed + index)
        steps = explanation_steps(question, EXPLAINERS[method].explainer(), Metrics(curves=curves))
        budget = Budget(evaluations=bench.sizes.evaluations or BUDGETS.get(method))
        events: list[Any] = []
        tasks.append(Task(steps=steps, on_event=events.append, budget=budget))
        told.append(events)
    return tasks, told


def efficiency(bench: Bench, results: Results) -> Iterator[Work]:
    """Yields point 2: each method alone and together, over the best bare passes for as many evaluations."""
    yield "load", 60.0, lambda: _load_report(bench)
    for count in (1, bench.sizes.jobs):
        for method in TIMED:
            yield (
                f"{method}: {count} together",
                8.0 if count == 1 else 20.0,
                lambda method=method, count=count: _efficiency(bench, results, method, count),
            )
    yield "igos++: host alone", 10.0, lambda: host_seconds(bench)


def _load_report(bench: Bench) -> Value:
    loaded = _loaded(bench)
    steps = {step.name: step.detail if step.applied else f"not applied: {step.detail}" for step in loaded.found.steps}
    return {
        "seconds": loaded.load_seconds,
        "batch_size": loaded.found.batch_size,
        "buckets": loaded.evaluator.buckets,
        "images_per_second": loaded.found.evaluations_per_second,
        "gradient_images_per_second": loaded.found.gradient_evaluations_per_second,
        "memory_bytes": loaded.memory_bytes,
        "steps": steps,
    }


def _efficiency(bench: Bench, results: Results, method: str, count: int) -> Value:
    loaded = _loaded(bench)
    run_together(loaded.engine(), tasks_of(bench, loaded, method, 1)[0], bench.settle)  # compiles what is missing
    tasks, _ = tasks_of(bench, loaded, method, count, seed=100)
    engine = loaded.engine()
    seconds = run_together(engine, tasks, bench.settle)
    evaluations = sum(task.usage.evaluations for task in tasks)
    gradient = sum(task.usage.gradient_evaluations for task in tasks)
    value = {
        "seconds": seconds,
        "explanations_per_second": count / seconds,
        "evaluations": evaluations,
        "with_gradient": gradient,
        "batches": engine.counters.batches,
        "busy_share": engine.counters.busy / seconds,
    }
    if (bare := best(results)) is not None:
        # The bare rate with gradient is of a pass forward and backward.
        ideal = (evaluations - gradient) / bare[0] + gradient / bare[1]
        value |= {"over_bare": seconds / ideal}
    return value


class _Immediate:
    """An evaluator that answers at once: what remains is the time of the host."""

    supports_gradients = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Answers each part with the same scores."""
        return [self._scores(part) for part in parts]

    def inspect(self, request: Any) -> object:
        """Is never called by methods that only evaluate."""
        raise NotImplementedError

    def _scores(self, part: Part) -> Scores:
        rows = part.rows
        scores = torch.full((rows,), 0.5)
        masks = part.request.masks[part.start : part.stop]
        gradient = torch.full(masks.shape, 0.01, device=self._device) if part.request.gradient else None
        probabilities = torch.full((rows, 10), 0.1) if part.request.probabilities else None
        return Scores(scores, torch.zeros(rows, dtype=torch.int64), scores, gradient, probabilities)


def host_seconds(bench: Bench) -> Value:
    """Returns the time of iGOS++ without its evaluations: one process explains no faster, whatever the card does."""
    loaded = _loaded(bench)
    tasks, _ = tasks_of(bench, loaded, "igos++", bench.sizes.jobs)
    engine = Engine(_Immediate(loaded.device), batch_size=loaded.found.batch_size)
    seconds = run_together(engine, tasks, bench.settle)
    return {"seconds_per_explanation": seconds / len(tasks), "explanations_per_second": len(tasks) / seconds}


def drift(bench: Bench, _results: Results) -> Iterator[Work]:
    """Yields point 3: reported scores after a search in reduced precision, and after one in full precision."""
    yield f"igos++ on {bench.sizes.images} images", 60.0, lambda: _drift(bench)


def _drift(bench: Bench) -> Value:
    reported = []
    for full_precision in (False, True):
        loaded = _loaded(bench, full_precision=full_precision)
        tasks, told = tasks_of(bench, loaded, "igos++", bench.sizes.images, curves=True)
        run_together(loaded.engine(), tasks, bench.settle)
        reported.append([_reported(events) for events in told])
    pairs = list(zip(*reported, strict=True))
    apart = {
        kind.value: [abs(reduced[kind] - full[kind]) for reduced, full in pairs]
        for kind in (CurveKind.INSERTION, CurveKind.DELETION)
    }
    same = sum(reduced["top"] == full["top"] for reduced, full in pairs)
    value: dict[str, Any] = {"images": len(pairs), "same_top_class": same}
    for name, values in apart.items():
        value |= {f"{name}_largest": max(values), f"{name}_mean": statistics.mean(values)}
    return value


def _reported(events: Sequence[Any]) -> dict[Any, Any]:
    """Returns the areas and the top class of an explanation."""
    areas = {event.kind: event.auc for event in events if isinstance(event, Curve) and event.mask_index == 0}
    (prediction,) = (event for event in events if isinstance(event, Prediction))
    return {**areas, "top": prediction.target.index}


def cost(bench: Bench, _results: Results) -> Iterator[Work]:
    """Yields point 6: the time of explanations of every method, together, with their curves."""
    for method in EXPLAINERS:
        if method not in NOT_PRICED:
            yield method, 15.0, lambda method=method: _cost(bench, method)


def _cost(bench: Bench, method: str) -> Value:
    loaded = _loaded(bench)
    tasks, _ = tasks_of(bench, loaded, method, bench.sizes.jobs, curves=True)
    started = time.perf_counter()
    run_together(loaded.engine(), tasks, bench.settle)
    seconds = (time.perf_counter() - started) / len(tasks)
    return {"seconds": seconds, "evaluations": statistics.mean(task.usage.evaluations for task in tasks)}
