"""Concept sets on the real model: their faithfulness, beside PCA, NMF and a plain autoencoder of the same size."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from subject import IMAGES_VARIABLE, arguments, load_model, machine, pictures, report, table
from torch import Tensor

from sagittal.engine import Task
from sagittal.explain.concepts import Box, ConceptFit, FitQuestion, FitSettings, GivenImages, fit_concepts
from sagittal.explain.concepts.fit import HELD_OUT
from sagittal.explain.concepts.quality import correlation_matrix, rebuilt_share
from sagittal.explain.concepts.srae import SRAE, pull_away
from sagittal.explain.concepts.training import initialise
from sagittal.explain.problem import derive_seed
from sagittal.models.loaded import LoadedModel

CONCEPTS, VIEWS, EPOCHS, SEEDS = 5, 20, 60, 3
"""X-features of each set, crops of each image, passes over them, fits from different seeds."""

LAYER = "_dropout"
"""The layer below the output, of 1,280 features."""

CLASSES = 4
"""Number of classes, those of evenly spaced images: none is selected by its results."""

TIMED_IMAGES, TIMED_FEATURES = 1_000, 1_280
"""Size of the timed fit."""


class Named(GivenImages):
    """Images whose features are kept from one class to the next."""

    digest = "benchmark"

    def __init__(self, images: Tensor) -> None:
        """Takes images, with the annotated parts in `parts.json` beside them, if there is one."""
        super().__init__(images, parts=annotated_parts())


def annotated_parts() -> Mapping[int, Mapping[str, Box]]:
    """Returns the annotated parts of the benchmark's images by index; empty without a `parts.json`."""
    directory = os.environ.get(IMAGES_VARIABLE)
    path = Path(directory) / "parts.json" if directory else None
    if directory is None or path is None or not path.exists():
        return {}
    files = [entry["file"] for entry in json.loads((Path(directory) / "labels.json").read_text())]
    return {files.index(name): parts for name, parts in json.loads(path.read_text()).items()}


class Kept:
    """Features in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Mapping[str, Tensor]] = {}

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns the stored tensors."""
        return self.state.get(key)

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Stores tensors."""
        self.state[key] = dict(state)


def run_fit(loaded: LoadedModel, question: FitQuestion) -> ConceptFit:
    """Runs a fit on the engine."""
    results: list[ConceptFit] = []
    ends: list[BaseException | None] = []

    def steps() -> Any:
        results.append((yield from fit_concepts(question)))

    engine = loaded.engine()
    engine.run(Task(steps=steps(), on_end=ends.append))
    if ends[0] is not None:
        raise ends[0]
    return results[0]


Decomposition = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Fits to training features; returns values and reconstructed features of other features."""


def pca(train: Tensor, other: Tensor, count: int = CONCEPTS) -> Sequence[Tensor]:
    """Returns the values of the strongest principal components, and the features they reconstruct."""
    mean = train.mean(0)
    components = torch.linalg.svd(train - mean, full_matrices=False)[2][:count]
    values = [(each - mean) @ components.T for each in (train, other)]
    return [*values, values[1] @ components + mean]


def nmf(train: Tensor, other: Tensor, count: int = CONCEPTS) -> Sequence[Tensor]:
    """Returns the weights of a non-negative factorisation by multiplicative updates, and the reconstructed features."""
    generator = torch.Generator().manual_seed(0)
    positive, unseen = train.clamp(min=0), other.clamp(min=0)
    parts = torch.rand(count, train.shape[1], generator=generator)
    weights = torch.rand(len(train), count, generator=generator)
    for _ in range(200):
        weights = weights * (positive @ parts.T) / (weights @ parts @ parts.T + 1e-9)
        parts = parts * (weights.T @ positive) / (weights.T @ weights @ parts + 1e-9)
    found = torch.rand(len(other), count, generator=generator)
    for _ in range(200):
        found = found * (unseen @ parts.T) / (found @ parts @ parts.T + 1e-9)
    return [weights, found, found @ parts]


def autoencoder(train: Tensor, other: Tensor, count: int = CONCEPTS) -> Sequence[Tensor]:
    """Returns the code of an autoencoder of the same shape, fitted to the squared error alone, and what it rebuilds."""
    network = SRAE(train.shape[1], count, 1, 64)
    principal = torch.linalg.svd(train - train.mean(0), full_matrices=False)[2][0]
    initialise(network, train, (train @ principal).unsqueeze(1), torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.002)
    for _ in range(EPOCHS):
        optimiser.zero_grad()
        (network.decode(network.encode(train)) - train).square().mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        values = [network.encode(each) for each in (train, other)]
        return [*values, network.decode(values[1])]


BESIDE: Mapping[str, Decomposition] = {"PCA": pca, "NMF": nmf, "autoencoder": autoencoder}


def beside(decompose: Decomposition, kept: Mapping[str, Tensor], target: int) -> Sequence[float]:
    """Returns the figures of a decomposition with the best linear readout, in the order of `COLUMNS`."""
    features, outputs = kept["features"], kept["outputs"][..., target]
    count = len(features)
    training, held_out = split(count)
    train, other = features[training].flatten(0, 1), features[held_out, 0]
    values, found, rebuilt = decompose(train, other)
    with_one = torch.cat([values, torch.ones(len(values), 1)], 1)
    readout = torch.linalg.lstsq(with_one, outputs[training].flatten()).solution
    predicted = torch.cat([found, torch.ones(len(found), 1)], 1) @ readout
    wanted = outputs[held_out, 0]
    return [
        float(correlation_matrix(predicted.unsqueeze(1), wanted.unsqueeze(1))),
        float((predicted - wanted).abs().mean()),
        float(pull_away(found)),
        rebuilt_share(other, rebuilt),
        rebuilt_variance(other, rebuilt),
        largest_part(found * readout[:-1]),
    ]


def figures_of(fit: ConceptFit, kept: Mapping[str, Tensor]) -> Sequence[float | None]:
    """Returns the figures of a concept set, in the order of `COLUMNS`, and its stability."""
    quality, srae = fit.quality, fit.fitted.srae
    features = kept["features"][split(len(kept["features"]))[1], 0]
    values = srae.encode(features)
    return [
        quality.faithfulness_correlation,
        quality.faithfulness_error,
        quality.orthogonality,
        quality.reconstructed_share,
        rebuilt_variance(features, srae.decode(values)),
        largest_part(srae.contributions(values)[..., 0]),
        fit.stability,
    ]


def split(count: int) -> tuple[Tensor, Tensor]:
    """Returns the fitted and the held-out images, chosen as in a fit with seed 0."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(0, "held-out")))
    held_out = max(2, round(HELD_OUT * count))
    return order[held_out:], order[:held_out]


def rebuilt_variance(features: Tensor, rebuilt: Tensor) -> float:
    """Returns the reconstructed share of the variance of all features together; below 0 if worse than their mean."""
    spread = (features - features.mean(0)).square().sum()
    return float(1 - (features - rebuilt).square().sum() / spread)


def largest_part(contributions: Tensor) -> float:
    """Returns the share of the largest of the variances of contributions (images, x-features) in their sum."""
    spread = contributions.var(0)
    return float(spread.max() / spread.sum())


def timed_fit(loaded: LoadedModel) -> float:
    """Returns the seconds of the default fit of 5 x-features on features of the documented size."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(TIMED_IMAGES, 40, generator=generator)
    features = factors @ torch.rand(40, TIMED_FEATURES, generator=generator)
    kept = Kept()
    settings = FitSettings(concepts=CONCEPTS)
    size = loaded.entry.preprocessing.input_size
    blank = torch.zeros(1, 3, size, size)
    kept.put(
        f"benchmark {LAYER} 0 0",
        {
            "kept": torch.arange(TIMED_IMAGES),
            "features": features.unsqueeze(1),
            "outputs": (features[:, :3] + 0.1 * torch.randn(TIMED_IMAGES, 3, generator=generator)).unsqueeze(1),
        },
    )
    images = Named(blank.expand(TIMED_IMAGES, -1, -1, -1))
    started = time.monotonic()
    run_fit(loaded, FitQuestion(images=images, targets=(0,), layer=LAYER, settings=settings, cache=kept, size=size))
    return time.monotonic() - started


def main() -> None:
    """Measures, and writes the report."""
    options = arguments(__doc__ or "")
    loaded = load_model()
    seen = torch.stack([picture.image for picture in pictures(loaded)])
    if len(seen) < CONCEPTS + 2:
        # so few images are augmented by many crops
        seen = torch.cat([seen.roll((shift, shift), (2, 3)) for shift in range(0, 224, 28)])
    targets, kept = chosen_targets(loaded, seen), Kept()
    begun = time.monotonic()
    rows: list[Sequence[Any]] = []
    for target in targets:
        fit = fit_set(loaded, seen, [target], kept)
        (features,) = kept.state.values()
        label = loaded.labels[target]
        rows.append([label, "XNN", *figures_of(fit, features)])
        rows += [[label, name, *beside(one, features, target), None] for name, one in BESIDE.items()]
    together = fit_set(loaded, seen, targets, kept)
    seconds = time.monotonic() - begun
    report(written(rows, [loaded.labels[target] for target in targets], len(seen), together, seconds)
           + timing(timed_fit(loaded)), options)  # fmt: skip


def chosen_targets(loaded: LoadedModel, seen: Tensor) -> Sequence[int]:
    """Returns the model's top classes on evenly spaced images."""
    with torch.no_grad():
        tops = torch.cat([loaded.evaluator.inspected(batch).argmax(1) for batch in seen.split(8)])  # type: ignore[misc]
    return list(dict.fromkeys(tops[:: max(1, len(tops) // CLASSES)].tolist()))[:CLASSES]


def fit_set(loaded: LoadedModel, seen: Tensor, targets: Sequence[int], kept: Kept) -> ConceptFit:
    """Fits a set to images."""
    settings = FitSettings(concepts=CONCEPTS, views=VIEWS, epochs=EPOCHS, seeds=SEEDS)
    return run_fit(
        loaded,
        FitQuestion(images=Named(seen), targets=targets, layer=LAYER, settings=settings, cache=kept, size=224),
    )


COLUMNS = ["correlation", "mean error", "pull-away", "rebuilt", "variance", "largest part", "stability"]


def written(
    rows: Sequence[Sequence[Any]], labels: Sequence[str], count: int, together: ConceptFit, seconds: float
) -> str:
    """Returns the report of the sets."""
    where = f"the {count} images of `{IMAGES_VARIABLE}`" if os.environ.get(IMAGES_VARIABLE) else "the shipped images"
    each = [[row[0], row[1], *map(_figure, row[2:])] for row in rows]
    several = together.quality
    return (
        "# Concept sets, measured\n\n"
        f"`make bench-concepts` on {machine()}, EfficientNet-Lite0, {where}, {VIEWS} random crops of each fitted "
        f"image, {CONCEPTS} x-features of the layer `{LAYER}`, {EPOCHS} epochs, {SEEDS} seeds. A fifth of the "
        f"images ({several.images}) is held out, and all figures except stability are measured on these, uncropped. "
        "The predicted score is the logit of the class, the model's output before softmax. Classes are the model's top "
        "classes on evenly spaced images: they are not selected by their results. PCA, NMF and the autoencoder never "
        "see the score: the best linear readout with a constant is fitted to their codes. [](concept-sets.md) "
        "describes how to use concept sets."
        f"\n\n{_READING}\n\nMean over the classes:\n\n"
        + table(["", *COLUMNS, "worst correlation"], _means(rows))
        + _LEGEND
        + "\nEach class:\n\n"
        + table(["class", "", *COLUMNS], each)
        + f"\nOne set for the {len(labels)} classes together ({', '.join(labels)}): mean correlation "
        f"{_figure(several.faithfulness_correlation)}, mean error {_figure(several.faithfulness_error)}, the same top "
        f"class among these as the model on {_figure(several.class_agreement)} of the held-out images.\n"
        + _locality(together)
        + f"\nExtracting the features once and fitting these {len(labels) + 1} sets, each {SEEDS} times, with the "
        f"other methods, took {seconds:.0f} s.\n"
    )


_READING = (
    "**How to read the correlation.** The layer feeds the model's last linear map: the logit is a linear function of "
    "its features, and a fit starts at the solution of that linear problem. XNN's correlation and mean error are "
    "therefore almost given by construction. They show that a fit keeps its initial solution. They do not show that "
    "its x-features mean anything, nor that XNN is better than methods that never see the score. The other columns are "
    "results of the fit."
)

_LEGEND = (
    "\n*pull-away*: mean squared cosine between x-features, 0 for orthogonal ones. *rebuilt*: share of the features"
    " for which the set reconstructs at least half of the variance. *variance*: reconstructed share of the "
    "variance of all features, below 0 if worse than their mean. *largest part*: share of the largest "
    "contribution in the variance of all contributions; near 1 the set adds little to the score itself. "
    "*stability*: mean absolute correlation of x-features with those of other seeds.\n"
)


def _means(rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[str]]:
    means = []
    for name in ["XNN", *BESIDE]:
        chosen = [row for row in rows if row[1] == name]
        columns = [[row[column] for row in chosen if row[column] is not None] for column in range(2, 9)]
        mean = [_figure(sum(one) / len(one)) if one else "" for one in columns]
        means.append([name, *mean, _figure(min(columns[0]))])
    return means


def _locality(fit: ConceptFit) -> str:
    local = fit.locality
    if local.mean_entropy is None or local.parts_covered is None:
        return "\nThese images have no annotated parts (`parts.json`), so locality is not measured.\n"
    return (
        f"\nLocality on {local.images} annotated images: entropy {local.mean_entropy:.2f}, {local.parts_covered:.1f} "
        "parts covered.\n"
    )


def timing(seconds: float) -> str:
    """Returns the report of the timed fit."""
    return (
        f"\nA fit of {CONCEPTS} x-features, with its default {FitSettings().seeds} seeds and {FitSettings().epochs} "
        f"epochs, to {TIMED_IMAGES:,} images of {TIMED_FEATURES:,} cached features took {seconds:.0f} s "
        f"on {torch.get_num_threads()} thread(s), including the images and heatmaps of its x-features.\n"
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
