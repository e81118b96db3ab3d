"""The self-check of a model when it is loaded: is what was registered true of what it does?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.core.entries import ModelEntry, Preprocessing
from sagittal.engine.evaluator import PROBABILITIES, Output
from sagittal.models.preprocessing import resize_and_crop, to_input, to_picture

TOLERANCE = 1e-3
"""Largest difference of a probability that is rounding."""

PICTURE = (300, 400)
"""Height and width of the picture on which preprocessing is tried, in pixels."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str
    """What was found, and what to do where it is not as it should be."""
    required: bool = True
    """Whether a model that does not pass is refused."""


def check_model(module: nn.Module, entry: ModelEntry, probe: Tensor) -> Sequence[Check]:
    """Looks at a model with images of noise of shape (n, 3, height, width); n is more than one."""
    with torch.inference_mode():
        outputs = module(probe).float()
        again = module(probe).float()
        singles = torch.cat([module(probe[index : index + 1]).float() for index in range(len(probe))])
    probabilities = PROBABILITIES[Output(entry.output)]
    return [
        _finite(outputs),
        SCORES[entry.output](outputs),
        _batch_agrees(probabilities(outputs), probabilities(singles)),
        _deterministic(outputs, again),
        _sees_pictures(outputs),
        check_preprocessing(entry.preprocessing),
    ]


def check_preprocessing(preprocessing: Preprocessing) -> Check:
    """Checks that the model's input still holds the picture: what is taken from it and added to it comes back."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    returned = to_picture(to_input(picture, preprocessing), preprocessing)
    difference = int(np.abs(returned.astype(int) - resize_and_crop(picture, preprocessing).astype(int)).max())
    detail = f"a picture comes back from the model's input to within {difference} of 255"
    return Check("preprocessing-returns", difference <= 1, detail, required=False)


def _finite(outputs: Tensor) -> Check:
    bad = int((~torch.isfinite(outputs)).sum())
    detail = f"{bad} of {outputs.numel()} outputs are NaN or infinite" if bad else "all outputs are finite"
    return Check("outputs-finite", not bad, detail)


def _logits(outputs: Tensor) -> Check:
    if _within(outputs) and _off_one(outputs) < TOLERANCE:
        detail = 'the outputs sum to one already: output = "probabilities" says so, and keeps the scores as they are'
        return Check("scores", False, detail, required=False)
    off = _off_one(PROBABILITIES[Output.LOGITS](outputs))
    return Check("scores", off < TOLERANCE, f"the softmax sums to one within {off:.1g}")


def _probabilities(outputs: Tensor) -> Check:
    off = _off_one(outputs)
    passed = _within(outputs) and off < TOLERANCE
    detail = f"the outputs sum to one within {off:.1g}"
    if not passed:
        detail = (
            f"the outputs lie between {float(outputs.min()):.3g} and {float(outputs.max()):.3g} and miss a sum of one "
            f'by {off:.3g}: they are no probabilities; output = "logits" or "multi-label-logits" may be meant'
        )
    return Check("scores", passed, detail)


def _label_logits(outputs: Tensor) -> Check:
    if _within(outputs):
        detail = 'all outputs lie between zero and one: output = "multi-label-probabilities" may be meant'
        return Check("scores", False, detail, required=False)
    return Check("scores", True, "each label has a score of its own, the sigmoid of its output")


def _label_probabilities(outputs: Tensor) -> Check:
    low, high = float(outputs.min()), float(outputs.max())
    detail = f"the outputs lie between {low:.3g} and {high:.3g}"
    if not _within(outputs):
        detail += ': they are no probabilities; output = "multi-label-logits" may be meant'
    return Check("scores", _within(outputs), detail)


SCORES: dict[str, Callable[[Tensor], Check]] = {
    "logits": _logits,
    "probabilities": _probabilities,
    "multi-label-logits": _label_logits,
    "multi-label-probabilities": _label_probabilities,
}
"""What the outputs must be like, by what they are said to mean."""


def _batch_agrees(together: Tensor, apart: Tensor) -> Check:
    difference = float((together - apart).abs().max())
    detail = f"a batch and single images agree within {difference:.1g}"
    if difference > TOLERANCE:
        detail = (
            f"an image's probabilities change by up to {difference:.3g} with its neighbours in a batch: batch norm "
            "that is not in evaluation mode, or a layer that mixes images"
        )
    return Check("batch-agrees", difference <= TOLERANCE, detail)


def _deterministic(outputs: Tensor, again: Tensor) -> Check:
    same = torch.equal(outputs, again)
    difference = float((outputs - again).abs().max())
    detail = "the same images give the same outputs, to the last bit"
    return Check(
        "deterministic", same, detail if same else f"outputs differ by {difference:.1g} from call to call", False
    )


def _sees_pictures(outputs: Tensor) -> Check:
    spread = float((outputs - outputs[:1]).abs().max())
    detail = "different images give different outputs"
    return Check("sees-pictures", spread > 0, detail if spread else "all images give the same outputs", required=False)


def _within(outputs: Tensor) -> bool:
    return bool((outputs >= -TOLERANCE).all() and (outputs <= 1 + TOLERANCE).all())


def _off_one(probabilities: Tensor) -> float:
    return float((probabilities.sum(-1) - 1).abs().max())
