"""The measurements of each image, in order of importance; those on disk are not repeated."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quality import cache, heatmap, published, sets, weights
from quality.subjects import FIRST as KNOWN
from quality.subjects import Subjects
from subject import Picture

from sagittal.explain import Explainer

CHEAP = 300
"""Evaluations up to which a method is checked against random weights in a quick run."""

REFERENCE = "igos++-reference"
FIRST = ("igos++", REFERENCE, f"igos++-{heatmap.SHORT}", "grad-cam", *sets.SEARCHES)
ORDERINGS = ("igos++", "igos", "grad-cam")
"""Heatmaps whose order of patches is compared with the search."""

CHECKED = 3
"""Number of images of the check against random weights."""


@dataclass(slots=True)
class Measurements:
    """All records by measurement and by image."""

    subjects: Subjects
    explainers: Mapping[str, Explainer] = field(default_factory=heatmap.explainers)

    def jobs(self, quick: bool) -> Iterator[tuple[str, Picture, Path, Callable[[], Mapping[str, Any]]]]:
        """Yields the measurements: a name, an image, a folder and a function."""
        others = [name for name in (*heatmap.METHODS, heatmap.FINE) if name not in FIRST]
        for names in (FIRST, others):
            for picture in self.subjects.chosen:
                for name in names:
                    if not (quick and name in ("rise", REFERENCE, "mse-overlap-2")):
                        yield name, picture, self.place(name), self._how(name, picture)
        if not quick:
            yield from self._seeds()
        yield from self._further(quick)

    def place(self, name: str) -> Path:
        """Returns the folder of a measurement."""
        digest = self.subjects.digest
        if name in sets.SEARCHES:
            return sets.place(name, digest)
        if name.startswith("order-"):
            return cache.ROOT / f"order-{self.place(name.removeprefix('order-')).name}"
        if name.startswith("published-"):
            method = name.split("-")[1]
            return cache.ROOT / f"{name}-{self.place(f'{method}-reference').name}"
        if name.startswith("resampled-"):
            return cache.ROOT / f"{name}-{self.place(REFERENCE).name}"
        if name.startswith("weights-"):
            return weights.place(self.place(name.removeprefix("weights-")))
        return heatmap.place(name, self.explainers[name], digest)

    def records(self, name: str) -> dict[str, cache.Record]:
        """Returns the records of a measurement on disk, by image, in the fixed order."""
        folder = self.place(name)
        paths = {picture: folder / f"{picture}.npz" for picture in self.subjects.names}
        return {picture: cache.read(path) for picture, path in paths.items() if path.exists()}

    def _how(self, name: str, picture: Picture) -> Callable[[], Mapping[str, Any]]:
        loaded = self.subjects.model
        if name in sets.SEARCHES:
            return lambda: sets.searched(loaded, picture, name)
        return lambda: heatmap.measured(loaded, picture, self.explainers[name])

    def _seeds(self) -> Iterator[tuple[str, Picture, Path, Callable[[], Mapping[str, Any]]]]:
        """Yields the reference implementation if its figures are known: several seeds, other resampling."""
        for picture in self.subjects.chosen:
            for (method, known), seed in itertools.product(published.KNOWN, published.SEEDS):
                if known == picture.name:
                    label, how = f"published-{method}-{seed}", partial(self._published, method, seed, picture)
                    yield label, picture, self.place(label), how
            for way in published.RESAMPLINGS if picture.name in KNOWN else ():
                label = f"resampled-{way}"
                yield label, picture, self.place(label), partial(self._resampled, way, picture)

    def _further(self, quick: bool) -> Iterator[tuple[str, Picture, Path, Callable[[], Mapping[str, Any]]]]:
        """Yields the orderings, the curve over evaluations, and the check against random weights."""
        for picture in self.subjects.chosen:
            for name in ORDERINGS:
                label = f"order-{name}"
                yield label, picture, self.place(label), lambda name=name, picture=picture: self._order(name, picture)
        curve: Sequence[str] = [f"igos++-{count}" for count in heatmap.SCHEDULES if count != heatmap.DEFAULT]
        for picture in self.subjects.chosen if not quick else ():
            if picture.name in self.subjects.tuning:
                for name in curve:
                    yield name, picture, self.place(name), self._how(name, picture)
        for picture in self.subjects.chosen[: 1 if quick else CHECKED]:
            for name in heatmap.METHODS:
                if not (quick and name == "rise"):
                    label = f"weights-{name}"
                    yield label, picture, self.place(label), lambda n=name, p=picture: self._weights(n, p)

    def _published(self, method: str, seed: int, picture: Picture) -> Mapping[str, Any]:
        path = self.place(REFERENCE) / f"{picture.name}.npz"
        if f"{method}-reference" != REFERENCE or seed != 0 or not path.exists():
            return published.measured(self.subjects.model, picture, method, seed)
        known = cache.read(path)
        saliency = torch.from_numpy(known["saliency"])
        again = published.measured(self.subjects.model, picture, method, seed, saliency)
        return {**again, "evaluations": known["evaluations"]}

    def _resampled(self, how: str, picture: Picture) -> Mapping[str, Any]:
        loaded = self.subjects.model
        return published.measured(loaded, published.resampled(loaded, picture.name, how), "igos++", seed=0)

    def _order(self, name: str, picture: Picture) -> Mapping[str, Any]:
        saliency = cache.read(self.place(name) / f"{picture.name}.npz")["saliency"]
        return sets.prefix(self.subjects.model, picture, torch.from_numpy(saliency))

    def _weights(self, name: str, picture: Picture) -> Mapping[str, Any]:
        loaded = self.subjects.model
        with torch.inference_mode():
            target = int(loaded.evaluator.module(picture.image.unsqueeze(0)).argmax())
        return weights.checked(loaded, picture, self.explainers[name], target)
