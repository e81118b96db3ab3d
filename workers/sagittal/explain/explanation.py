"""A whole explanation: prediction, baseline, the method's own steps, and the curves that say how far to trust it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sagittal.explain.events import Measurement, SaliencyMask, Warning
from sagittal.explain.explainer import Explainer
from sagittal.explain.measures.curves import Metrics, measure, pointing_game
from sagittal.explain.problem import Problem, Question, prepare
from sagittal.explain.steps import Steps, T

EMPTY = 0.05
"""A heatmap whose largest value is below this shows nothing."""


def explanation_steps(question: Question, explainer: Explainer, metrics: Metrics = Metrics()) -> Steps[None]:
    """Yields requests and events of one explanation, from prediction to metrics."""
    problem = yield from prepare(question, hides=explainer.hides or metrics.curves)
    finals: list[SaliencyMask] = []

    def note(event: Any) -> None:
        if isinstance(event, SaliencyMask) and event.final:
            finals.append(event)

    yield from observe(explainer.explain(problem), note)
    for mask in finals:
        yield from assess(problem, mask, metrics)


def observe(steps: Steps[T], note: Callable[[Any], None]) -> Steps[T]:
    """Passes everything through in both directions, exceptions included, and shows `note` what is yielded."""
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
        except Exception as error:  # noqa: BLE001 - whatever is thrown in belongs to the inner generator
            resume = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            resume = lambda answer=answer: steps.send(answer)  # type: ignore[misc]  # noqa: E731


def assess(problem: Problem, mask: SaliencyMask, metrics: Metrics) -> Steps[None]:
    """Yields what is measured of a final mask, and a warning if it shows nothing."""
    if is_empty(mask.saliency):
        yield Warning(
            "EMPTY_EXPLANATION",
            "No part of the image was found to matter: hiding it hardly changes the score. The model may not look at "
            "the image for this class, or its reasons are spread too thinly for a mask of this size.",
        )
    if metrics.curves:
        yield from measure(problem, mask.saliency, metrics, mask.index)
    if metrics.boxes:
        yield Measurement("pointing_game_hit", pointing_game(mask.saliency, problem.size, metrics.boxes))


def is_empty(saliency: Tensor) -> bool:
    """Whether a heatmap shows nothing."""
    return float(saliency.abs().max()) < EMPTY
