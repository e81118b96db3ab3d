"""Concept sets on networks whose concepts are known: do x-features match the planted traits?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from concepts import autoencoder, largest_part, nmf, pca, rebuilt_variance
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from known_reasons.networks import SIZE, to_input
from sagittal.engine import Engine, Output, Task, TorchEvaluator
from sagittal.explain.concepts import Box, ConceptFit, FitQuestion, FitSettings, GivenImages, fit_concepts
from sagittal.explain.concepts.features import layer_features
from sagittal.explain.concepts.quality import correlation_matrix
from sagittal.explain.concepts.srae import pull_away
from sagittal.synthetic import CLASSES, PARTS, RULES, Sample, sample_images
from sagittal.synthetic.files import box_of

SEED = 4_000_037
"""Seed of the images of the fits."""

FITTED, JUDGED, ANNOTATED = 1_000, 400, 10
"""Images of a fit, other images on which it is judged, and held-out images of the fit with annotated parts."""

COUNT, SEEDS = 20, 2
"""X-features, and fits of each method: one set for all classes together."""

RECOVERED = 0.95
"""A planted trait is recovered if the x-feature matched with it separates images with and without it at this AUROC."""

PLANTED = tuple(
    dict.fromkeys((part, trait) for rule in RULES.values() for reason in rule for part, trait in reason.items())
)
"""The traits of the rules, as parts and traits."""

METHODS = {"srae": "published loss", "components": "independent components"}

BESIDE = {"PCA": pca, "NMF": nmf, "autoencoder": autoencoder}

LAYERS = {"3": "last block", "2": "block before it"}
"""Layers of the networks that are read, each averaged over its positions."""


def planted(samples: Sequence[Sample]) -> Tensor:
    """Returns whether each image has each planted trait, float32 of shape (images, traits)."""
    return torch.tensor([[float(each.scene.traits[part] == trait) for part, trait in PLANTED] for each in samples])


class World:
    """Images for fits and for judging them, drawn once."""

    def __init__(self) -> None:
        samples = list(sample_images(FITTED + JUDGED, seed=SEED, size=SIZE))
        self.fitted, self.judged = samples[:FITTED], samples[FITTED:]
        self.traits = planted(self.judged)

    def inputs(self, samples: Sequence[Sample]) -> Tensor:
        """Returns images as inputs of a network."""
        return to_input(np.stack([sample.image for sample in samples]))


def read(network: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the layer's features, averaged over positions, and the logits."""
    with torch.no_grad():
        read = [layer_features(network, layer, some) for some in images.split(200)]
    return torch.cat([features for features, _, _ in read]), torch.cat([outputs for _, _, outputs in read])


def fit(network: nn.Module, layer: str, method: str, world: World) -> ConceptFit:
    """Fits a set to all classes, by the path of the service."""
    boxes: dict[int, Mapping[str, Box]] = {
        index: {part: tuple(box_of(mask)) for part in PARTS if (mask := sample.drawing.mask(part)).any()}  # type: ignore[misc]
        for index, sample in enumerate(world.fitted[: 5 * ANNOTATED])
    }
    question = FitQuestion(
        images=GivenImages(world.inputs(world.fitted), parts=boxes),
        targets=tuple(range(len(CLASSES))),
        settings=FitSettings(concepts=COUNT, seeds=SEEDS, method=method),
        layer=layer,
        size=SIZE,
    )
    found: list[ConceptFit] = []
    ends: list[BaseException | None] = []

    def steps() -> Any:
        found.append((yield from fit_concepts(question)))

    evaluator = TorchEvaluator(module=network, device=torch.device("cpu"), output=Output.LOGITS)
    Engine(evaluator).run(Task(steps=steps(), on_end=ends.append))
    if ends[0] is not None:
        raise ends[0]
    return found[0]


def of_method(network: nn.Module, layer: str, method: str, world: World) -> Mapping[str, Any]:
    """Returns the figures of our sets."""
    made = fit(network, layer, method, world)
    features, outputs = read(network, layer, world.inputs(world.judged))
    srae = made.fitted.srae
    values = srae.encode(features)
    figures = judged(values, srae(features), outputs, srae.decode(values), features, srae.weights(), world.traits)
    covered = made.locality.parts_covered
    mixed = [index for index, each in enumerate(made.x_features) if each.mixed]
    return {
        **figures,
        "stability": made.stability or 0.0,
        "covered": np.nan if covered is None else covered,
        "mixed": len(mixed),
    }


def of_decomposition(network: nn.Module, layer: str, name: str, world: World) -> Mapping[str, Any]:
    """Returns the figures of a method that never sees the outputs, with the best linear readout."""
    features, outputs = read(network, layer, world.inputs(world.fitted))
    others, wanted = read(network, layer, world.inputs(world.judged))
    train, values, rebuilt = BESIDE[name](features, others, COUNT)
    readout = torch.linalg.lstsq(torch.cat([train, torch.ones(len(train), 1)], 1), outputs).solution
    predicted = torch.cat([values, torch.ones(len(values), 1)], 1) @ readout
    return judged(values, predicted, wanted, rebuilt, others, readout[:-1], world.traits)


def judged(
    values: Tensor,
    predicted: Tensor,
    outputs: Tensor,
    rebuilt: Tensor,
    features: Tensor,
    readout: Tensor,
    traits: Tensor,
) -> Mapping[str, float]:
    """Returns the figures of x-features on images.

    Args:
        values: (images, x-features).
        predicted: (images, classes).
        outputs: (images, classes), the logits.
        rebuilt: (images, features).
        features: (images, features).
        readout: (x-features, classes).
        traits: (images, traits), 0 or 1.
    """
    shares = [largest_part(values * readout[:, column]) for column in range(outputs.shape[1])]
    likeness = correlation_matrix(values, traits).abs().numpy()
    separated, matched = matching(values.numpy(), traits.numpy())
    pure = [likeness[row, column] ** 2 / max((likeness[row] ** 2).sum(), 1e-12) for row, column in matched]
    return {
        "correlation": float(torch.diagonal(correlation_matrix(predicted, outputs)).mean()),
        "largest": float(np.mean(shares)),
        "rebuilt": rebuilt_variance(features, rebuilt),
        "pull-away": float(pull_away(values)),
        "recovery": float(np.mean([each >= RECOVERED for each in separated])),
        "auroc": float(np.mean(separated)),
        "purity": float(np.mean(pure)),
    }


def matching(values: NDArray[Any], traits: NDArray[Any]) -> tuple[list[float], list[tuple[int, int]]]:
    """Returns the AUROCs of the pairs of x-feature and trait that have the highest sum, and the pairs."""
    table = np.array([[area(column, trait) for trait in traits.T] for column in values.T])
    table = np.maximum(table, 1 - table)
    rows, columns = linear_sum_assignment(-table)
    pairs = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
    return [float(table[pair]) for pair in pairs], pairs


def area(values: NDArray[Any], there: NDArray[Any]) -> float:
    """Returns the AUROC of values for a trait; 0.5 if all images or none have it."""
    positive = int(there.sum())
    if positive in (0, len(there)):
        return 0.5
    ranks = np.empty(len(values))
    ranks[np.argsort(values)] = np.arange(1, len(values) + 1)
    return float((ranks[there > 0].sum() - positive * (positive + 1) / 2) / (positive * (len(there) - positive)))
