"""From a question to a problem: predicts the image, settles the target, finds a baseline that hides it.

Where neither the method nor what is measured hides anything, the baseline is neither made nor evaluated.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagittal.explain.events import ClassScore, Prediction, Warning
from sagittal.explain.problem import Baseline, Blur, Candidate, Problem, State, is_low
from sagittal.explain.requests import Evaluate, Scores, Steps, Subject

TOP = 5
"""Classes listed in a prediction."""

TINY_SCORE = 0.01
"""Below this probability of the full image, an explanation says more of noise than of the class."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """What is to be explained."""

    image: Tensor
    """As the model takes it: float32 of shape (3, height, width), on the model's device."""
    target: int | None = None
    """Index of the class; None for the model's top class."""
    baseline: Baseline = Blur()
    black: Tensor | None = None
    """Black as the model takes it, of shape (3, 1, 1); None where black is zero."""
    seed: int = 0
    restored: State = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt; empty for a fresh start."""


def prepare(question: Question, *, hides: bool = True) -> Steps:
    """Yields requests, a Prediction and warnings; returns the Problem.

    Args:
        question: What is to be explained.
        hides: Whether parts of the image will be hidden. Without, the problem's baseline is the image itself.
    """
    probabilities = (yield _images(question.image, None)).probabilities[0]
    target = int(probabilities.argmax()) if question.target is None else question.target
    full_score = float(probabilities[target])
    kind, candidate, score = "", Candidate(question.image), full_score
    if hides:
        kind = question.baseline.kind
        candidate, score = yield from _find_baseline(question, target, full_score)
    yield Prediction(
        target=ClassScore(target, full_score),
        top=top_classes(probabilities, TOP),
        baseline_score=score if hides else 0.0,
        baseline=kind,
        blur_sigma=candidate.blur_sigma,
    )
    yield from _warnings(score if hides else None, full_score)
    subject = Subject(question.image, candidate.image, target)
    return Problem(
        subject=subject,
        full_score=full_score,
        baseline_score=score,
        seed=question.seed,
        restored=question.restored,
    )


def top_classes(probabilities: Tensor, count: int) -> tuple[ClassScore, ...]:
    """Returns the most probable classes, best first."""
    scores, indices = probabilities.topk(min(count, probabilities.numel()))
    return tuple(ClassScore(index, score) for index, score in zip(indices.tolist(), scores.tolist(), strict=True))


def _images(image: Tensor, target: int | None) -> Evaluate:
    """Asks for all probabilities of an image as it is."""
    masks = torch.ones(1, 1, 1, device=image.device)
    return Evaluate(subject=Subject(image, image, target), masks=masks, exact=True, metric=True, probabilities=True)


def _find_baseline(question: Question, target: int, full_score: float) -> Steps:
    """Returns the first candidate with a low score, or the one with the lowest."""
    black = torch.zeros(3, 1, 1) if question.black is None else question.black
    tried: list[tuple[float, Candidate]] = []
    for candidate in question.baseline.candidates(question.image, black.to(question.image), question.seed):
        scores: Scores = yield _images(candidate.image, target)
        tried.append((float(scores.target[0]), candidate))
        if is_low(tried[-1][0], full_score):
            break
    score, candidate = min(tried, key=lambda pair: pair[0])
    return candidate, score


def _warnings(baseline_score: float | None, full_score: float) -> Steps:
    if full_score < TINY_SCORE:
        yield Warning(
            "TARGET_SCORE_TINY",
            f"The model gives the target only {full_score:.2g}: relative scores are unreliable. "
            "Choose a class that the model sees in the image.",
        )
    if baseline_score is not None and not is_low(baseline_score, full_score):
        yield Warning(
            "BASELINE_STILL_CONFIDENT",
            f"The target's score on the baseline is {baseline_score:.3f} of {full_score:.3f} on the image: hiding does "
            "not take the class away. Try another baseline, and read the curves with care.",
        )


def predict(image: Tensor, count: int) -> Steps:
    """Yields a Prediction of an image's `count` most probable classes, without a baseline."""
    probabilities = (yield _images(image, None)).probabilities[0]
    top = top_classes(probabilities, count)
    yield Prediction(target=top[0], top=top, baseline_score=0.0, baseline="")
