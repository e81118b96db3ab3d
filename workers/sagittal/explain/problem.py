"""The problem that an explainer solves, an image with its baseline and a class, and its derivation from a question."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sagittal.engine.alterations import Alteration, PixelScale, Rounding
from sagittal.engine.masking import stretched_units
from sagittal.engine.requests import Evaluate, Inspect, ModelView, Scores, Subject
from sagittal.explain.baselines import Baseline, Blur, Candidate, is_low
from sagittal.explain.events import ClassScore, Prediction, Warning
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.steps import Steps, T, ask

BTV_SIGMA = 0.01
"""Denominator of the bilateral weight on the normalised image (`sigma` of the reference implementation is squared)."""

TOP = 5
"""Classes listed in a prediction."""

TINY_SCORE = 0.01
"""Below this unmasked score, an explanation reflects noise rather than the class."""

State = Mapping[str, Tensor]
"""State from which another attempt resumes: tensors by name. The state of a part has a prefix."""


def derive_seed(seed: int, *path: int | str) -> int:
    """Returns a seed in [0, 2^63) that depends only on `seed` and `path`, so that any worker can resume the job."""
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def prefixed(part: str, state: State) -> dict[str, Tensor]:
    """Returns the state of a part with prefixed names."""
    return {f"{part}.{name}": tensor for name, tensor in state.items()}


def within(state: State, part: str) -> dict[str, Tensor]:
    """Returns the state of a part without the prefix; empty if there is none."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """An image, its baseline and a class, with the target's scores on both."""

    subject: Subject
    unmasked_score: float
    """Probability of the target on the image."""
    baseline_score: float
    """Probability of the target on the baseline."""
    seed: int = 0
    restored: State = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt; empty for a first attempt."""
    pixels: PixelScale | None = None
    """Scale of the image's 8-bit pixels; None if its pixels are not 8-bit, or if the scale is not known."""
    _edges: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _axes: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def image(self) -> Tensor:
        """The model's input: float32 of shape (3, height, width)."""
        return self.subject.image

    @property
    def baseline(self) -> Tensor:
        """Replaces the hidden part of the image; of the image's shape."""
        return self.subject.baseline

    @property
    def target(self) -> int:
        """Index of the explained class."""
        if self.subject.target is None:
            raise ValueError("the problem has no target: call prepare() first")
        return self.subject.target

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Similarity of neighbouring pixels over rows and over columns, computed once; see `edge_weights`."""
        if not self._edges:
            self._edges.append(edge_weights(self.image))
        return self._edges[0]

    def enlarged(self, masks: Tensor) -> Tensor:
        """Returns masks (n, h, w) at the image's size, bilinearly, as two small products with a cheap gradient."""
        if masks.shape[-2:] == self.size:
            return masks
        rows, columns = (self._axis(few, many) for few, many in zip(masks.shape[-2:], self.size, strict=True))
        return rows @ masks @ columns.mT

    def _axis(self, cells: int, pixels: int) -> Tensor:
        if (cells, pixels) not in self._axes:
            self._axes[cells, pixels] = stretched_units(cells, pixels, self.image.device)
        return self._axes[cells, pixels]

    def evaluate(
        self,
        masks: Tensor,
        *,
        gradient: bool = False,
        noise: float = 0.0,
        alterations: tuple[Alteration, ...] = (),
        **options: Any,
    ) -> Steps[Scores]:
        """Requests and returns the scores of masks (n, h, w); the options are those of `Evaluate`.

        Without gradient and noise, masked images are images that could exist: their pixels are 8-bit.
        """
        altered = (*(() if gradient or noise else self.rounding), *alterations)
        return ask(
            Evaluate(subject=self.subject, masks=masks, gradient=gradient, noise=noise, alterations=altered, **options)
        )

    @property
    def rounding(self) -> tuple[Alteration, ...]:
        """The alteration to 8-bit pixels; none if the image has no such pixels."""
        return () if self.pixels is None else (Rounding(self.pixels),)

    def inspect(self, call: Callable[[ModelView], T], *, gradient: bool = True) -> Steps[T]:
        """Requests a call with the model that evaluates it once, with or without gradient; returns its result."""
        return ask(Inspect(subject=self.subject, call=call, evaluations=1, gradient_evaluations=int(gradient)))

    def full(self, size: int, value: float) -> Tensor:
        """Returns a mask of shape (size, size) with one value."""
        return torch.full((size, size), value, device=self.image.device)

    def generator(self, *path: int | str) -> torch.Generator:
        """Returns a CPU random number generator that depends only on the seed and `path`."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *path))

    def noise_seed(self, *path: int | str) -> int:
        """Returns a noise seed that depends only on the seed and `path`."""
        return derive_seed(self.seed, "noise", *path)


def edge_weights(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `exp(-|grad I|^2 / sigma^2)` between neighbours, over rows and over columns; the mean over channels.

    Args:
        image: The normalised image, (3, height, width).
    """
    rows, columns = image[..., 1:, :] - image[..., :-1, :], image[..., :, 1:] - image[..., :, :-1]
    return torch.exp(-(rows**2).mean(0) / BTV_SIGMA), torch.exp(-(columns**2).mean(0) / BTV_SIGMA)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """The request: an image, a class, and the options that apply to every method."""

    image: Tensor
    """The model's input: float32 of shape (3, height, width), on the model's device."""
    target: int | None = None
    """Index of the class; None for the model's top class."""
    baseline: Baseline = Blur()
    black: Tensor | None = None
    """Normalised value of black, of shape (3, 1, 1); None if black is zero."""
    pixels: PixelScale | None = None
    """Values of black and white pixels in the model's input; None if they are not known."""
    seed: int = 0
    restored: State = field(default_factory=dict)
    """State of the last checkpoint of an earlier attempt; empty for a first attempt."""

    @property
    def pixel_scale(self) -> PixelScale | None:
        """The scale of 8-bit pixels, if the image has such pixels."""
        return self.pixels if self.pixels is not None and self.pixels.fits(self.image) else None


def prepare(question: Question, *, hides: bool = True) -> Steps[Problem]:
    """Yields requests, a Prediction and warnings; returns the Problem.

    It predicts the image, selects the target, and finds a baseline that hides it. If neither the method nor a
    measurement hides anything, no baseline is made or evaluated.

    Args:
        question: The request.
        hides: Whether parts of the image will be hidden. If not, the problem's baseline is the image itself.
    """
    probabilities = yield from _probabilities(question.image)
    target = int(probabilities.argmax()) if question.target is None else question.target
    if not 0 <= target < len(probabilities):
        raise InvalidParameter("target", f"is {target}; give a class from 0 to {len(probabilities) - 1}")
    unmasked_score = float(probabilities[target])
    kind, candidate, score = "", Candidate(question.image), unmasked_score
    if hides:
        kind = question.baseline.kind
        candidate, score = yield from _find_baseline(question, target, unmasked_score)
    yield Prediction(
        target=ClassScore(target, unmasked_score),
        top=top_classes(probabilities, TOP),
        baseline_score=score if hides else 0.0,
        baseline=kind,
        blur_sigma=candidate.blur_sigma,
    )
    yield from _warnings(score if hides else None, unmasked_score)
    subject = Subject(question.image, candidate.image, target)
    return Problem(
        subject=subject,
        unmasked_score=unmasked_score,
        baseline_score=score,
        seed=question.seed,
        restored=question.restored,
        pixels=question.pixel_scale,
    )


def top_classes(probabilities: Tensor, count: int) -> tuple[ClassScore, ...]:
    """Returns the most probable classes, best first."""
    scores, indices = probabilities.topk(min(count, probabilities.numel()))
    return tuple(ClassScore(index, score) for index, score in zip(indices.tolist(), scores.tolist(), strict=True))


def _probabilities(image: Tensor) -> Steps[Tensor]:
    """Returns the probabilities of all classes, shape (classes,), on an unmasked image."""
    masks = torch.ones(1, 1, 1, device=image.device)
    request = Evaluate(subject=Subject(image, image, None), masks=masks, exact=True, metric=True, probabilities=True)
    scores = yield from ask(request)
    if scores.probabilities is None:
        raise ValueError("the scores have no probabilities; request them with probabilities=True")
    return scores.probabilities[0]


def _find_baseline(question: Question, target: int, unmasked_score: float) -> Steps[tuple[Candidate, float]]:
    """Returns the first candidate with a low score, or else the candidate with the lowest score."""
    black = torch.zeros(3, 1, 1) if question.black is None else question.black
    seed = derive_seed(question.seed, "baseline")
    tried: list[tuple[float, Candidate]] = []
    scale = question.pixel_scale
    for candidate in question.baseline.candidates(question.image, black.to(question.image), seed):
        if scale is not None:
            candidate = replace(candidate, image=scale.rounded(candidate.image))  # noqa: PLW2901
        score = float((yield from _probabilities(candidate.image))[target])
        tried.append((score, candidate))
        if is_low(score, unmasked_score):
            break
    score, candidate = min(tried, key=lambda pair: pair[0])
    return candidate, score


def _warnings(baseline_score: float | None, unmasked_score: float) -> Steps[None]:
    if unmasked_score < TINY_SCORE:
        yield Warning(
            "TARGET_SCORE_TINY",
            f"The model gives the target a probability of only {unmasked_score:.2g}: relative scores are unreliable. "
            "Choose a class that the model recognises in the image.",
        )
    if baseline_score is not None and not is_low(baseline_score, unmasked_score):
        yield Warning(
            "BASELINE_STILL_CONFIDENT",
            f"The target's score is {baseline_score:.3f} on the baseline and {unmasked_score:.3f} on the image: "
            "the baseline does not hide the class. Try another baseline, and interpret the curves with care.",
        )


def predict(image: Tensor, count: int) -> Steps[None]:
    """Yields a Prediction with an image's `count` most probable classes, without a baseline."""
    probabilities = yield from _probabilities(image)
    top = top_classes(probabilities, count)
    yield Prediction(target=top[0], top=top, baseline_score=0.0, baseline="")
