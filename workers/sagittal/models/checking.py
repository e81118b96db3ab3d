"""The self-check of a model at load: compares its registration with its behaviour."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.core.models import IMAGENET, Layers, ModelEntry, Preprocessing, read_labels
from sagittal.engine.evaluator import PROBABILITIES, BlackBox, Output
from sagittal.imaging.fitting import fit_to_input
from sagittal.models.preprocessing import to_input, to_rgb
from sagittal.models.probing import SeenLayers
from sagittal.models.sources import Access, ModelUnavailable
from sagittal.models.sources.files import find_inside

TOLERANCE = 1e-3
"""Largest difference of a probability that counts as rounding."""

IMAGE_SIZE = (300, 400)
"""Height and width of the image for the check of the preprocessing, in pixels."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    detail: str
    """The result, and the remedy if the check failed."""
    required: bool = True
    """Whether a model that fails the check is refused."""


def check_model(module: nn.Module, entry: ModelEntry, probe: Tensor) -> Sequence[Check]:
    """Checks a model with images of noise of shape (n, 3, height, width); n is more than one."""
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
        _sees_images(outputs),
        check_preprocessing(entry.preprocessing),
    ]


def check_preprocessing(preprocessing: Preprocessing) -> Check:
    """Checks that the preprocessing is reversible: the image can be recovered from the model's input."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    returned = to_rgb(to_input(image, preprocessing), preprocessing)
    difference = int(np.abs(returned.astype(int) - fit_to_input(image, preprocessing).astype(int)).max())
    detail = f"an image is recovered from the model's input to within {difference} of 255"
    return Check("preprocessing-returns", difference <= 1, detail, required=False)


def _finite(outputs: Tensor) -> Check:
    bad = int((~torch.isfinite(outputs)).sum())
    detail = f"{bad} of {outputs.numel()} outputs are NaN or infinite" if bad else "all outputs are finite"
    return Check("outputs-finite", not bad, detail)


def _logits(outputs: Tensor) -> Check:
    if _within(outputs) and _off_one(outputs) < TOLERANCE:
        detail = 'the outputs sum to one already: set output = "probabilities" to keep the scores as they are'
        return Check("scores", False, detail, required=False)
    off = _off_one(PROBABILITIES[Output.LOGITS](outputs))
    return Check("scores", off < TOLERANCE, f"the softmax sums to one within {off:.1g}")


def _probabilities(outputs: Tensor) -> Check:
    off = _off_one(outputs)
    passed = _within(outputs) and off < TOLERANCE
    detail = f"the outputs sum to one within {off:.1g}"
    if not passed:
        detail = (
            f"the outputs lie between {float(outputs.min()):.3g} and {float(outputs.max()):.3g} and their sum differs "
            f'from one by {off:.3g}: they are no probabilities; set output = "logits" or "multi-label-logits"'
        )
    return Check("scores", passed, detail)


def _label_logits(outputs: Tensor) -> Check:
    if _within(outputs):
        detail = (
            'all outputs lie between zero and one: set output = "multi-label-probabilities" if that is what they are'
        )
        return Check("scores", False, detail, required=False)
    return Check("scores", True, "each label has a score of its own, the sigmoid of its output")


def _label_probabilities(outputs: Tensor) -> Check:
    low, high = float(outputs.min()), float(outputs.max())
    detail = f"the outputs lie between {low:.3g} and {high:.3g}"
    if not _within(outputs):
        detail += ': they are no probabilities; set output = "multi-label-logits"'
    return Check("scores", _within(outputs), detail)


SCORES: dict[str, Callable[[Tensor], Check]] = {
    "logits": _logits,
    "probabilities": _probabilities,
    "multi-label-logits": _label_logits,
    "multi-label-probabilities": _label_probabilities,
}
"""Checks of the outputs, by their registered meaning."""


def _batch_agrees(together: Tensor, apart: Tensor) -> Check:
    difference = float((together - apart).abs().max())
    detail = f"a batch and single images agree within {difference:.1g}"
    if difference > TOLERANCE:
        detail = (
            f"an image's probabilities change by up to {difference:.3g} with its neighbours in a batch: use batch norm "
            "in evaluation mode, and no layer that mixes images"
        )
    return Check("batch-agrees", difference <= TOLERANCE, detail)


def _deterministic(outputs: Tensor, again: Tensor) -> Check:
    same = torch.equal(outputs, again)
    difference = float((outputs - again).abs().max())
    detail = "the same images give the same outputs, to the last bit"
    return Check(
        "deterministic", same, detail if same else f"outputs differ by {difference:.1g} from call to call", False
    )


def _sees_images(outputs: Tensor) -> Check:
    spread = float((outputs - outputs[:1]).abs().max())
    detail = "different images give different outputs"
    return Check("sees-pictures", spread > 0, detail if spread else "all images give the same outputs", required=False)


def _within(outputs: Tensor) -> bool:
    return bool((outputs >= -TOLERANCE).all() and (outputs <= 1 + TOLERANCE).all())


def _off_one(probabilities: Tensor) -> float:
    return float((probabilities.sum(-1) - 1).abs().max())


def model_digest(module: nn.Module, entry: ModelEntry) -> str:
    """Returns the SHA-256 of names, shapes and values of all weights, of the preprocessing and of the output type."""
    digest = hashlib.sha256(f"{entry.preprocessing.model_dump_json()} {entry.output} {type(module)}".encode())
    _digest_weights(digest, module)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Returns the SHA-256 of names, shapes, types and values of all weights, in any file format."""
    digest = hashlib.sha256()
    _digest_weights(digest, module)
    return digest.hexdigest()


def _digest_weights(digest: Any, module: nn.Module) -> None:
    if isinstance(module, BlackBox):
        digest.update(module.identity.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


LISTED = 24
"""Maximum number of layers that an error lists, the last ones."""


def check_weights(module: nn.Module, entry: ModelEntry) -> str:
    """Returns the digest of the weights. Raises ModelUnavailable if it is not the registered one."""
    found = weights_digest(module)
    if entry.weights_digest not in ("", found):
        raise ModelUnavailable(
            f"weights_digest: the weights have SHA-256 {found}, and {entry.weights_digest} was registered: the file is "
            "another one, or damaged; restore it, or correct the registration"
        )
    return found


def check_layers(wanted: Layers, seen: SeenLayers) -> None:
    """Raises ModelUnavailable if a registered layer does not exist."""
    for field_name, name, known in (
        ("spatial", wanted.spatial, seen.spatial),
        ("features", wanted.features, (*seen.spatial, *seen.flat)),
    ):
        if name and name not in known:
            raise ModelUnavailable(
                f"layers.{field_name} is {name!r}, which is no such layer of this model; give one of "
                f"{', '.join(known[-LISTED:]) or 'none'}"
            )


def labels_of(entry: ModelEntry, classes: int, access: Access) -> Sequence[str]:
    """Returns the labels of a model: one per class, or none. Raises ModelUnavailable."""
    if isinstance(entry.labels, list):
        labels: Sequence[str] = entry.labels
    else:
        try:
            labels = read_labels(_labels_source(entry.labels, access))
        except OSError as error:
            raise ModelUnavailable(f"labels: the file {entry.labels} cannot be read: {error.strerror}") from error
    if labels and len(labels) != classes:
        raise ModelUnavailable(f"labels: there are {len(labels)} for {classes} classes; give one for each, or none")
    return labels


def _labels_source(name: str, access: Access) -> str:
    """Returns the path of the labels; files must lie in the directories of weights."""
    return name if name == IMAGENET else str(find_inside(name, access.directories, "SAGITTAL_SOURCES__DIRECTORIES"))
