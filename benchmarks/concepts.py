"""Concept sets on the real model: how faithful they are, beside PCA, NMF and a plain autoencoder of the same size."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from subject import IMAGES_VARIABLE, arguments, load_model, machine, pictures, report, table
from torch import Tensor

from sagittal.engine import Task
from sagittal.explain.concepts import ConceptFit, FitQuestion, FitSettings, GivenImages, fit_concepts
from sagittal.explain.concepts.beginning import initialise
from sagittal.explain.concepts.quality import correlation_matrix, rebuilt_share
from sagittal.explain.concepts.srae import SRAE, pull_away
from sagittal.explain.problem import derive_seed
from sagittal.models.loaded import LoadedModel

CONCEPTS, VIEWS, EPOCHS = 5, 20, 60
"""X-features of each set, crops of each image, passes over them."""

CLASSES = 4
"""Classes, those of evenly spaced pictures: none is chosen for how well it goes."""

TIMED_IMAGES, TIMED_FEATURES = 1_000, 1_280
"""Size of the fit that is timed."""


class Named(GivenImages):
    """Pictures whose features are kept from one class to the next."""

    digest = "benchmark"


class Kept:
    """Features in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Mapping[str, Tensor]] = {}

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns what is kept."""
        return self.state.get(key)

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Keeps tensors."""
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
"""Fits to training features; returns values and rebuilt features of other features."""


def pca(train: Tensor, other: Tensor) -> Sequence[Tensor]:
    """Returns the values of the strongest principal components, and what they rebuild."""
    mean = train.mean(0)
    components = torch.linalg.svd(train - mean, full_matrices=False)[2][:CONCEPTS]
    values = [(each - mean) @ components.T for each in (train, other)]
    return [*values, values[1] @ components + mean]


def nmf(train: Tensor, other: Tensor) -> Sequence[Tensor]:
    """Returns the weights of a non-negative factorisation by multiplicative updates, and what they rebuild."""
    generator = torch.Generator().manual_seed(0)
    positive, unseen = train.clamp(min=0), other.clamp(min=0)
    parts = torch.rand(CONCEPTS, train.shape[1], generator=generator)
    weights = torch.rand(len(train), CONCEPTS, generator=generator)
    for _ in range(200):
        weights = weights * (positive @ parts.T) / (weights @ parts @ parts.T + 1e-9)
        parts = parts * (weights.T @ positive) / (weights.T @ weights @ parts + 1e-9)
    found = torch.rand(len(other), CONCEPTS, generator=generator)
    for _ in range(200):
        found = found * (unseen @ parts.T) / (found @ parts @ parts.T + 1e-9)
    return [weights, found, found @ parts]


def autoencoder(train: Tensor, other: Tensor) -> Sequence[Tensor]:
    """Returns the code of an autoencoder of the same shape, fitted to the squared error alone, and what it rebuilds."""
    network = SRAE(train.shape[1], CONCEPTS, 1, 64)
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
    """Returns correlation, error, pull-away and rebuilt share of a decomposition with the best linear readout."""
    features, outputs = kept["features"], kept["outputs"][..., target]
    count = len(features)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(0, "held-out")))
    held_out, training = order[: round(0.2 * count)], order[round(0.2 * count) :]
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
    ]


def timed_fit(loaded: LoadedModel) -> float:
    """Returns the seconds that the default fit of 5 x-features takes on features of the size that is promised for."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(TIMED_IMAGES, 40, generator=generator)
    features = factors @ torch.rand(40, TIMED_FEATURES, generator=generator)
    kept = Kept()
    settings = FitSettings(concepts=CONCEPTS)
    size = loaded.entry.preprocessing.input_size
    blank = torch.zeros(1, 3, size, size)
    layer = "_dropout"
    kept.put(
        f"benchmark {layer} 0 0",
        {
            "kept": torch.arange(TIMED_IMAGES),
            "features": features.unsqueeze(1),
            "outputs": (features[:, :3] + 0.1 * torch.randn(TIMED_IMAGES, 3, generator=generator)).unsqueeze(1),
        },
    )
    images = Named(blank.expand(TIMED_IMAGES, -1, -1, -1))
    started = time.monotonic()
    run_fit(loaded, FitQuestion(images=images, targets=(0,), layer=layer, settings=settings, cache=kept, size=size))
    return time.monotonic() - started


def main() -> None:
    """Measures, and writes the report."""
    options = arguments(__doc__ or "")
    loaded = load_model()
    seen = torch.stack([picture.image for picture in pictures(loaded)])
    if len(seen) < CONCEPTS + 2:
        # so few pictures are cut into many
        seen = torch.cat([seen.roll((shift, shift), (2, 3)) for shift in range(0, 224, 28)])
    with torch.no_grad():
        tops = torch.cat([loaded.evaluator.inspected(batch).argmax(1) for batch in seen.split(8)])  # type: ignore[misc]
    targets = list(dict.fromkeys(tops[:: max(1, len(tops) // CLASSES)].tolist()))[:CLASSES]
    kept, rows = Kept(), []
    for target in targets:
        settings = FitSettings(concepts=CONCEPTS, views=VIEWS, epochs=EPOCHS)
        fit = run_fit(
            loaded, FitQuestion(images=Named(seen), targets=(target,), settings=settings, cache=kept, size=224)
        )
        quality = fit.quality
        figures = [quality.faithfulness_correlation, quality.faithfulness_error, quality.orthogonality]
        rows.append([loaded.labels[target], "XNN", *figures, quality.reconstructed_share, fit.stability])
        (features,) = kept.state.values()
        rows += [[loaded.labels[target], name, *beside(one, features, target), None] for name, one in BESIDE.items()]
    seconds = timed_fit(loaded)
    report(_written(rows, len(seen), seconds), options)


def _written(rows: Sequence[Sequence[Any]], count: int, seconds: float) -> str:
    names = ["XNN", *BESIDE]
    means = []
    for name in names:
        chosen = [row for row in rows if row[1] == name]
        columns = [[row[column] for row in chosen if row[column] is not None] for column in range(2, 7)]
        means.append([name, *(_figure(sum(one) / len(one)) if one else "" for one in columns), min(columns[0])])
    for row in means:
        row[-1] = _figure(row[-1])
    where = (
        f"the {count} pictures of `{IMAGES_VARIABLE}`" if os.environ.get(IMAGES_VARIABLE) else "the shipped pictures"
    )
    header = ["", "correlation", "mean error", "pull-away", "rebuilt", "stability"]
    each = [[row[0], row[1], *("" if value is None else _figure(value) for value in row[2:])] for row in rows]
    return (
        "# Concept sets, measured\n\n"
        f"`make bench-concepts` on {machine()}, EfficientNet-Lite0, {where}, {VIEWS} random crops of each that is "
        f"fitted, {CONCEPTS} x-features of the layer `_dropout`, {EPOCHS} epochs. A fifth of the pictures is held out, "
        "and all figures but stability are of these, uncropped. The score that is predicted is the class's logit, the "
        "model's output before softmax. Classes are the model's answers to evenly spaced pictures. PCA, NMF and the "
        "autoencoder never see the score: the best linear readout with a constant is put on them.\n\n"
        "Mean over the classes:\n\n"
        + table([*header, "worst correlation"], means)
        + "\nEach class:\n\n"
        + table(["class", *header], each)
        + f"\nA fit of {CONCEPTS} x-features, with its default {FitSettings().seeds} seeds and {FitSettings().epochs} "
        f"epochs, to {TIMED_IMAGES:,} images of {TIMED_FEATURES:,} features that lie in the cache took {seconds:.0f} s "
        "on this machine, which did other work beside it.\n"
    )


def _figure(value: float) -> str:
    return f"{value:.3f}"


if __name__ == "__main__":
    main()
