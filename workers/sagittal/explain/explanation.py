"""A complete explanation: prediction, baseline, the steps of the method, and the curves that measure its quality."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sagittal.explain.events import GraphNode, Measurement, SaliencyMask, SufficientSet, Warning
from sagittal.explain.explainer import Explainer
from sagittal.explain.measures.curves import Metrics, measure, pointing_game
from sagittal.explain.measures.predictability import Finding, measure_predictability
from sagittal.explain.problem import Problem, Question, prepare
from sagittal.explain.steps import Steps, T

EMPTY = 0.05
"""A heatmap whose largest value is below this is empty."""


def explanation_steps(question: Question, explainer: Explainer, metrics: Metrics = Metrics()) -> Steps[None]:
    """Yields the requests and events of one explanation, from prediction to metrics."""
    problem = yield from prepare(question, hides=explainer.hides or metrics.curves or metrics.predictability > 0)
    found: list[Finding] = []

    def note(event: Any) -> None:
        if isinstance(event, SufficientSet | GraphNode) or (isinstance(event, SaliencyMask) and event.final):
            found.append(event)

    yield from observe(explainer.explain(problem), note)
    for mask in found:
        if isinstance(mask, SaliencyMask):
            yield from assess(problem, mask, metrics)
    if metrics.predictability:
        yield from measure_predictability(problem, found, metrics.predictability)


def observe(steps: Steps[T], note: Callable[[Any], None]) -> Steps[T]:
    """Forwards everything in both directions, including exceptions, and calls `note` with each yielded value."""
    resume: Callable[[], Any] = lambda: next(steps)  # noqa: E731 - each turn resumes in another way
    while True:
        try:
            item = resume()
        except StopIteration as end:
            result: T = end.value
            return result
        note(item)
        try:
            answer = yield item
        except Exception as error:  # noqa: BLE001 - the inner generator handles every exception thrown into it
            resume = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            resume = lambda answer=answer: steps.send(answer)  # type: ignore[misc]  # noqa: E731


def assess(problem: Problem, mask: SaliencyMask, metrics: Metrics) -> Steps[None]:
    """Yields the measurements of a final mask, and a warning if the mask is empty."""
    if is_empty(mask.saliency):
        yield Warning(
            "EMPTY_EXPLANATION",
            "No part of the image was found to matter: hiding it hardly changes the score. The model may not use the "
            "image for this class, or its evidence may be spread too thinly for a mask of this size.",
        )
    if metrics.curves:
        yield from measure(problem, mask.saliency, metrics, mask.index)
    if metrics.boxes:
        yield Measurement("pointing_game_hit", pointing_game(mask.saliency, problem.size, metrics.boxes))


def is_empty(saliency: Tensor) -> bool:
    """Returns whether a heatmap is empty."""
    return float(saliency.abs().max()) < EMPTY
