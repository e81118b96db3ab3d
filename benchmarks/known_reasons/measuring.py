"""Methods on networks whose reasons are known: heatmaps against parts, and sets against reasons."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import captum.attr
import numpy as np
import torch
from numpy.typing import NDArray
from quality.statistics import spearman
from torch import Tensor, nn

from known_reasons.networks import MEAN, SIZE, STD, to_input
from sagittal.engine.alterations import PixelScale
from sagittal.engine.masking import upsample
from sagittal.explain import EXPLAINERS, Metrics, explain
from sagittal.synthetic import CLASSES, PARTS, Reason, Sample, part_value

HEATMAPS = (
    "igos++", "igos+", "igos", "ordered-region-search", "meaningful-perturbation", "rise", "grad-cam", "score-cam",
    "integrated-gradients", "excitation-bp", "occlusion",
)  # fmt: skip
"""Our methods, each with its defaults."""

SETS = ("minimal-sufficient-explanations", "structured-attention-graph")

NAMED = 0.5
"""Share of the pixels of each part of a reason that a set must show in order to name the reason."""

Saliency = NDArray[np.float64]
"""Of shape (SIZE, SIZE), at least 0."""

_PIXELS = PixelScale(black=(-MEAN / STD,) * 3, white=((1 - MEAN) / STD,) * 3)


def our_heatmap(name: str, network: nn.Module, sample: Sample) -> tuple[Saliency, int]:
    """Returns a heatmap of our method for the image's class, and its evaluations."""
    found = _explained(name, network, sample)
    assert found.mask is not None
    return _at_pixels(torch.from_numpy(found.mask)), found.evaluations


def _explained(name: str, network: nn.Module, sample: Sample) -> Any:
    return explain(
        network,
        to_input(sample.drawing.image),
        EXPLAINERS[name].explainer(),
        target=CLASSES.index(sample.label),
        metrics=Metrics(curves=False),
        pixels=_PIXELS,
    )


def _at_pixels(saliency: Tensor) -> Saliency:
    grown = upsample(saliency.float()[None], (SIZE, SIZE))[0, 0]
    return grown.clamp(min=0).double().numpy()


def _integrated(network: nn.Module, image: Tensor, target: int) -> tuple[Tensor, int]:
    return captum.attr.IntegratedGradients(network).attribute(
        image, target=target, n_steps=50, internal_batch_size=16
    ), 50


def _gradient(network: nn.Module, image: Tensor, target: int) -> tuple[Tensor, int]:
    return captum.attr.Saliency(network).attribute(image.clone().requires_grad_(True), target=target), 1


def _grad_cam(network: nn.Module, image: Tensor, target: int) -> tuple[Tensor, int]:
    layer = [module for module in network if not isinstance(module, nn.Linear)]
    last = [module for module in layer if any(isinstance(each, nn.Conv2d) for each in module.modules())][-1]
    return captum.attr.LayerGradCam(network, last).attribute(
        image.requires_grad_(True), target=target, relu_attributions=True
    ), 1


def _occlusion(network: nn.Module, image: Tensor, target: int) -> tuple[Tensor, int]:
    windows, stride = (3, 14, 14), (3, 5, 5)
    found = captum.attr.Occlusion(network).attribute(
        image, sliding_window_shapes=windows, strides=stride, target=target
    )
    return found, ((SIZE - 14) // 5 + 1) ** 2


def _shapley(network: nn.Module, image: Tensor, target: int) -> tuple[Tensor, int]:
    places = torch.arange(SIZE) * 7 // SIZE
    cells = (places[:, None] * 7 + places).expand(1, 3, SIZE, SIZE).contiguous()
    torch.manual_seed(0)
    found = captum.attr.ShapleyValueSampling(network).attribute(
        image, target=target, feature_mask=cells, n_samples=10, perturbations_per_eval=16
    )
    return found, 490


CAPTUM: Mapping[str, Callable[[nn.Module, Tensor, int], tuple[Tensor, int]]] = {
    "Captum Integrated Gradients": _integrated,
    "Captum gradient": _gradient,
    "Captum Grad-CAM": _grad_cam,
    "Captum occlusion": _occlusion,
    "Captum Shapley sampling": _shapley,
}
"""Captum's methods with its defaults: the logit of the class is explained, and hidden pixels become zero (grey)."""


def captum_heatmap(name: str, network: nn.Module, sample: Sample) -> tuple[Saliency, int]:
    """Returns a heatmap of Captum for the image's class: the positive sum over channels, and its evaluations."""
    image = to_input(sample.drawing.image)[None]
    found, evaluations = CAPTUM[name](network, image, CLASSES.index(sample.label))
    return _at_pixels(found.detach()[0].sum(0)), evaluations


CONTROLS: Mapping[str, Callable[[Sample], Saliency]] = {
    "every pixel alike": lambda _sample: np.ones((SIZE, SIZE)),
    "the bird alike": lambda sample: sample.drawing.bird.astype(float),
    "the true parts alike": lambda sample: np.isin(
        sample.drawing.parts, [part_value(part) for part in mattering_parts(sample)]
    ).astype(float),
}
"""Heatmaps that know nothing, or everything: the scale on which others are read."""


def heatmap_figures(saliency: Saliency, sample: Sample, effects: Mapping[str, float]) -> Mapping[str, float]:
    """Returns the figures of a heatmap.

    share: of the saliency, on the parts that matter; area: the share of these parts in the image's pixels.
    background: of the saliency, outside the bird.
    ranking: rank correlation, over parts, of mean saliency and true effect; correlation: Pearson's.
    first: 1 if the part of the highest mean saliency matters.
    """
    total = max(float(saliency.sum()), 1e-12)
    mattering = mattering_parts(sample)
    shown = np.any([sample.drawing.mask(part) for part in mattering], axis=0)
    visible = [part for part in PARTS if sample.drawing.mask(part).any()]
    means = [float(saliency[sample.drawing.mask(part)].mean()) for part in visible]
    true = [effects[part] for part in visible]
    return {
        "share": float(saliency[shown].sum()) / total,
        "area": float(shown.mean()),
        "background": float(saliency[~sample.drawing.bird].sum()) / total,
        "ranking": spearman(means, true),
        "correlation": float(np.corrcoef(means, true)[0, 1]) if np.ptp(means) > 0 else 0.0,
        "first": float(visible[int(np.argmax(means))] in mattering),
    }


def mattering_parts(sample: Sample) -> frozenset[str]:
    """Returns the parts of the reasons of its class that the bird satisfies."""
    return frozenset(part for reason in sample.reasons for part in reason)


def of_sets(name: str, network: nn.Module, sample: Sample) -> Mapping[str, float]:
    """Returns the figures of the sufficient sets, or of the roots of the graph, of our method."""
    found = _explained(name, network, sample)
    roots = found.graph.roots if found.graph is not None else ()
    patches = [each.patches for each in found.sufficient_sets] or [each.patches for each in roots]
    shown = [_pixels(each.grid, each.cells) for each in patches]
    return {**set_figures(shown, sample), "evaluations": found.evaluations}


def _pixels(grid: int, cells: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    shown = np.zeros((grid, grid), dtype=bool)
    shown[tuple(zip(*cells, strict=True))] = True
    places = np.arange(SIZE) * grid // SIZE
    return shown[places][:, places]


def set_figures(sets: Sequence[NDArray[np.bool_]], sample: Sample) -> Mapping[str, float]:
    """Returns the figures of sufficient sets: precision is missing if there are none.

    recall: the share of the satisfied reasons that some set names; precision: of the sets that name a reason.
    alone: of the sets that name exactly one of the satisfied reasons. area: the mean share of shown pixels.
    """
    names = [[names_reason(shown, reason, sample) for reason in sample.reasons] for shown in sets]
    figures = {"recall": float(np.mean([any(column) for column in zip(*names, strict=True)])) if sets else 0.0}
    figures |= {"sets": float(len(sets)), "reasons": float(len(sample.reasons))}
    if sets:
        figures["precision"] = float(np.mean([any(row) for row in names]))
        figures["alone"] = float(np.mean([sum(row) == 1 for row in names]))
        figures["area"] = float(np.mean([shown.mean() for shown in sets]))
    return figures


def names_reason(shown: NDArray[np.bool_], reason: Reason, sample: Sample) -> bool:
    """Returns whether a set shows enough of every part of a reason."""
    return all(float(shown[sample.drawing.mask(part)].mean()) >= NAMED for part in reason)
