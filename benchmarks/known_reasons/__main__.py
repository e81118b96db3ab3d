"""Explanations of networks whose reasons are known: `make bench-known-reasons` writes docs/known-reasons.md.

    python -m known_reasons --networks 3 --images 12 --write ../docs/known-reasons.md     from benchmarks/

Networks are trained first if they are not stored. Measurements are stored, too, so that a stopped run resumes.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from quality import cache
from reports import write_section
from torch import nn

from known_reasons import measuring, truth
from known_reasons.networks import DOZEN, SIZE, Networks, accuracy, digest_of, held_out_samples, logits
from known_reasons.report import ARMS, Row, written
from sagittal.explain import EXPLAINERS
from sagittal.synthetic import CLASSES, PARTS, RULES, Sample, sample_images

SEED = 2_000_003
"""Seed of the explained images."""

TRUTH_IMAGES = 20
"""Images of each class whose parts are changed, for each network."""

log = structlog.get_logger()


def main() -> None:
    """Measures what is missing, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3, help="number of networks")
    parser.add_argument("--images", type=int, default=12, help="number of explained images")
    parser.add_argument("--write", type=Path, help="file whose section `known reasons` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, networks = [], Networks()
    for recipe in DOZEN[: options.networks]:
        network, digest = networks.get(recipe), digest_of(recipe)
        whole = recorded("network", digest, "all", partial(of_network, network))
        rows.append(Row(digest, "", "network", whole))
        for name, sample in explained_samples(options.images):
            rows += [Row(digest, name, *each) for each in of_image(network, digest, name, sample)]
    text = written(rows)
    print(text)
    if options.write:
        write_section(options.write, "known reasons", text)


def explained_samples(count: int) -> Iterator[tuple[str, Sample]]:
    """Yields images: a woodpecker with both reasons, one with one, and the other classes with a rule, in turn."""
    kinds = [("woodpecker", 2), *((name, 1) for name in CLASSES if RULES[name])]
    found = 0
    for place, sample in enumerate(sample_images(200 * count, seed=SEED, size=SIZE)):
        if found < count and (sample.label, len(sample.reasons)) == kinds[found % len(kinds)]:
            yield f"{sample.label}-{place}", sample
            found += 1


def of_network(network: nn.Module) -> Mapping[str, Any]:
    """Returns the accuracy, the mean effect of each part on the logit of its class, and the effect of backgrounds."""
    figures: dict[str, Any] = {"accuracy": accuracy(network, list(held_out_samples()))}
    samples = list(sample_images(TRUTH_IMAGES * len(CLASSES), seed=SEED + 1, size=SIZE))
    figures["changed-by-background"] = np.mean([truth.changed_by_background(network, sample) for sample in samples])
    for name, arm in ARMS:
        having = [each for each in samples if each.label == name and each.reasons == (RULES[name][arm],)]
        effects = [truth.part_effects(network, sample) for sample in having]
        figures[f"effects-{name}-{arm}"] = [np.mean([each[part] for each in effects]) for part in PARTS]
    return figures


def of_image(network: nn.Module, digest: str, name: str, sample: Sample) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the figures of each method on an image, if the network recognises it."""
    if int(logits(network, sample.drawing.image[None]).argmax()) != CLASSES.index(sample.label):
        return
    effects = recorded("effects", digest, name, lambda: truth.part_effects(network, sample))
    for method in (*measuring.HEATMAPS, *measuring.CAPTUM, *measuring.CONTROLS):
        yield method, recorded(method, digest, name, partial(_heatmap, method, network, sample, effects))
    for method in measuring.SETS:
        yield method, recorded(method, digest, name, partial(measuring.of_sets, method, network, sample))


def _heatmap(method: str, network: nn.Module, sample: Sample, effects: Mapping[str, float]) -> Mapping[str, float]:
    if method in measuring.CONTROLS:
        saliency, evaluations = measuring.CONTROLS[method](sample), 0
    elif method in measuring.CAPTUM:
        saliency, evaluations = measuring.captum_heatmap(method, network, sample)
    else:
        saliency, evaluations = measuring.our_heatmap(method, network, sample)
    return {**measuring.heatmap_figures(saliency, sample, effects), "evaluations": evaluations}


def recorded(what: str, digest: str, image: str, measure: Callable[[], Mapping[str, Any]]) -> cache.Record:
    """Returns the stored figures, or measures and stores them."""
    modules = ("known_reasons.measuring", "known_reasons.truth", "known_reasons.__main__")
    explainer = EXPLAINERS[what].explainer if what in EXPLAINERS else None
    if explainer is not None:
        modules += (explainer.__module__,)
    settings = {"network": digest, "parameters": repr(explainer and explainer())}
    place = cache.folder(f"known-{what.replace(' ', '-')}", settings, modules)
    if not (place / f"{image}.npz").exists():
        log.info("known.measuring", what=what, network=digest, image=image)
    return cache.recorded(place, image, measure)


if __name__ == "__main__":
    main()
