"""Concept sets on networks whose concepts are known: measures, and writes their section of docs/known-reasons.md.

python -m known_reasons.concept_sets --networks 1 --write ../docs/known-reasons.md     from benchmarks/
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import cache
from reports import table, write_section
from torch import nn

from known_reasons import concepts
from known_reasons.networks import DOZEN, Networks, accuracy, digest_of, held_out_samples
from sagittal.synthetic import CLASSES, PARTS

_COLUMNS = {
    "correlation": "correlation", "largest": "largest part", "rebuilt": "rebuilt", "pull-away": "pull-away",
    "stability": "stability", "auroc": "AUROC", "recovery": "recovered", "purity": "purity", "covered": "parts covered",
    "mixed": "mixed",
}  # fmt: skip

_SOURCES = tuple(f"sagittal.explain.concepts.{name}" for name in ("srae", "training", "components", "features", "fit"))


def main() -> None:
    """Measures what is missing, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=1, help="number of networks")
    parser.add_argument("--write", type=Path, help="file whose section `known concepts` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world, networks = concepts.World(), Networks()
    chosen = [(networks.get(recipe), digest_of(recipe)) for recipe in DOZEN[: options.networks]]
    rows = []
    for layer, label in concepts.LAYERS.items():
        for method in (*concepts.METHODS, *concepts.BESIDE):
            found = [_recorded(network, digest, layer, method, world) for network, digest in chosen]
            means = {name: np.mean([each[name] for each in found]) for name in _COLUMNS if name in found[0]}
            cells = [f"{means[name]:.2f}" if name in means else "" for name in _COLUMNS]
            rows.append([label, concepts.METHODS.get(method, method), *cells])
    accuracies = [accuracy(network, list(held_out_samples())) for network, _ in chosen]
    text = _written(rows, accuracies)
    print(text)
    if options.write:
        write_section(options.write, "known concepts", text)


def _recorded(network: nn.Module, digest: str, layer: str, method: str, world: concepts.World) -> Mapping[str, Any]:
    by = concepts.of_method if method in concepts.METHODS else concepts.of_decomposition
    place = cache.folder(f"known-concepts-{method}", {"network": digest}, ("known_reasons.concepts", *_SOURCES))
    return cache.recorded(place, layer, partial(by, network, layer, method, world))


def _written(rows: Sequence[Sequence[str]], accuracies: Sequence[float]) -> str:
    several = ", ".join(f"{each:.3f}" for each in accuracies)
    names = ", ".join(f"{trait} {part}" for part, trait in concepts.PLANTED)
    return f"""## Concepts

`python -m known_reasons.concept_sets` wrote this section. Networks: {len(accuracies)}, of accuracy {several}. Each set
has {concepts.COUNT} x-features for all {len(CLASSES)} classes together, is fitted to {concepts.FITTED} images with the
defaults, and is judged on {concepts.JUDGED} others. The planted traits are {names}. Each is matched with one x-feature.

{table(["layer", "method", *_COLUMNS.values()], rows)}
*largest part*: share of the largest contribution in the variance of the contributions to a class. *rebuilt*: share of
the variance of the layer's features. *AUROC*: how well the matched x-features separate images with and without their
trait. *recovered*: share of the traits with an AUROC of at least {concepts.RECOVERED}. *purity*: share of the matched
trait in the squared correlations of its x-feature with all planted traits. *parts covered*: of {len(PARTS)} drawn
parts, by the heatmap. *mixed*: number of x-features that are marked as mixed. PCA, NMF and the autoencoder never see
the classes; the best linear readout is fitted to their codes.
"""


if __name__ == "__main__":
    main()
