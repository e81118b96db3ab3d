"""Audits a model: explains a data set as a batch, searches the explanations, and writes what was confirmed."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.audit.confirmation import Confirmation, OnTested, confirm
from sagittal.audit.dataset import MIN_GROUP, Dataset, LabelledImage
from sagittal.audit.evidence import MAX_GRID, Cells, Evidence, FiredConcept, Pixels, box_of, groups_of, to_grid
from sagittal.audit.findings import Audit, Thresholds
from sagittal.audit.interventions import Score
from sagittal.audit.report import audit_html
from sagittal.audit.sufficiency import Sufficiency, count_sets
from sagittal.bulk.failures import read_failures
from sagittal.bulk.shards import read_explanations
from sagittal.client import ConceptContribution, Explanation, InvalidRequest, Model, Preprocessing
from sagittal.imaging.fitting import fit_to_input, frame_of
from sagittal.imaging.masks import patch_mask, place_mask, place_patches
from sagittal.imaging.reading import read_image

#: Probability of its class below which an image is not searched: there is no reason to find.
MIN_SCORE = 0.1

#: Images that are kept in memory.
_CACHED = 512

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The explained images of a data set, in the directory of their batch."""

    evidence: Sequence[Evidence]
    left_out: Mapping[str, str]
    """Why a group is not searched, by its name."""
    failures: Mapping[str, str]
    """Why an image was not explained, by its key."""
    doubtful: tuple[str, ...]
    """Keys of images to which the model hardly gives their class."""
    method: str
    digest: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the method."""
    images: Mapping[str, LabelledImage] = field(default_factory=dict)


def read_evidence(dataset: Dataset, directory: Path, model: Model) -> Explained:
    """Returns the explained images of a data set from the directory of its batch.

    Raises:
        InvalidRequest: the images were explained with other labels, or the model gives hardly any of them its class.
    """
    read = _Reader(model.preprocessing)
    images = {each.key: each for each in dataset.images}
    found, doubtful, method, digest = [], [], "", ""
    parameters: Mapping[str, Any] = {}
    for key, explanation in read_explanations(directory):
        if key not in images or explanation.target is None:
            continue
        if explanation.target.index != images[key].label:
            text = f"{key} was explained as class {explanation.target.index}, and its label is {images[key].label}"
            raise InvalidRequest(f"{text}: the labels changed, so choose another directory", field="out")
        method, digest, parameters = explanation.method, explanation.model_digest, dict(explanation.parameters)
        if explanation.target.score < MIN_SCORE:
            doubtful.append(key)
            continue
        found.append(_evidence(images[key], explanation, read))
    failures = {each["key"]: each["message"] for each in read_failures(directory) if each["key"] in images}
    _check_right(len(found), len(doubtful), failures, model)
    found.sort(key=lambda each: each.key)  # results come in any order, and equal audits are equal
    sizes, wholes = Counter(each.group for each in found), Counter(each.group for each in dataset.images)
    few = {
        name: f"{sizes[name]} of {whole} images are explained and get their class; at least {MIN_GROUP} are needed"
        for name, whole in wholes.items()
        if sizes[name] < MIN_GROUP
    }
    return Explained(
        evidence=_on_one_grid([each for each in found if each.group not in few]),
        left_out={**dataset.left_out, **few}, failures=failures, doubtful=tuple(sorted(doubtful)), method=method,
        digest=digest, parameters=parameters, images=images,
    )  # fmt: skip


def _check_right(right: int, wrong: int, failures: Mapping[str, str], model: Model) -> None:
    if not right + wrong:
        first = next((f", such as {key}: {why}" for key, why in failures.items()), "")
        text = f"no image could be explained ({len(failures):,} failed{first}): repair them and run the audit again"
        raise InvalidRequest(text, field="source")
    if right < wrong / 9:
        text = f"{model.name} gives {right:,} of {right + wrong:,} images their class with at least {MIN_SCORE:.0%}"
        remedy = "check that the labels name the model's classes (classes), and its preprocessing"
        raise InvalidRequest(f"{text}: {remedy}", field="classes")


def audit(
    dataset: Dataset,
    explained: Explained,
    model: Model,
    score: Score,
    directory: Path,
    *,
    thresholds: Thresholds,
    seed: int = 0,
    on_tested: OnTested = lambda _done, _all: None,
) -> Audit:
    """Searches explained images, confirms what is found, and writes findings, report, cleaning list and masks.

    Raises:
        InvalidRequest: fewer than two groups or classes are left to compare.
    """
    evidence = explained.evidence
    if len({each.label for each in evidence}) < 2:
        why = "; ".join(f"{name}: {text}" for name, text in list(explained.left_out.items())[:5])
        text = f"fewer than two classes are left to compare ({why}): add images, or correct their labels"
        raise InvalidRequest(text, field="source")
    if not any(each.saliency.any() for each in evidence):
        text = f"{explained.method} gave no image a heatmap, a sufficient set or a concept that raises its class"
        raise InvalidRequest(f"{text}: choose another method, such as igos++", field="method")
    found = confirm(evidence, score, thresholds, seed=seed, on_tested=on_tested)
    result = Audit(
        model=model.name,
        model_version=model.version,
        model_digest=explained.digest,
        source=dataset.source,
        method=explained.method,
        size=model.preprocessing.input_size,
        images=len(evidence),
        groups=dict(sorted(Counter(each.group for each in evidence).items())),
        findings=tuple(each.finding for each in found.confirmed),
        tested=tuple(found.tested),
        thresholds=thresholds,
        outside=_outside(evidence),
        sufficient_sets=Sufficiency.of(
            {group: [evidence[place].sets for place in places] for group, places in groups_of(evidence).items()},
            explained.parameters,
        ),
        left_out=explained.left_out,
        failures=explained.failures,
        doubtful=explained.doubtful,
        notes=tuple(_notes(evidence, explained)),
    )
    write_cleaning_list(directory, explained, found, model.preprocessing)
    page = audit_html(result, found.confirmed, found.laboratory)
    (directory / "report.html").write_text(page, encoding="utf-8")
    result.save(directory)
    return result


def _outside(evidence: Sequence[Evidence]) -> dict[str, float]:
    """Returns the mean share of saliency outside the object of each group whose objects are known."""
    shares: dict[str, list[float]] = {}
    for each in evidence:
        if (share := each.outside_saliency) is not None:
            shares.setdefault(each.group, []).append(share)
    return {group: float(np.mean(found)) for group, found in sorted(shares.items())}


def _notes(evidence: Sequence[Evidence], explained: Explained) -> Iterator[str]:
    unknown = sum(each.read_inside is None for each in evidence)
    if unknown:
        yield (
            f"The object of {unknown:,} of {len(evidence):,} images is unknown (no boxes, no mask): a finding there "
            "may be the object itself, and its severity is limited. Look at the evidence images."
        )
    if explained.failures:
        yield f"{len(explained.failures):,} images were not explained; they are listed at the end."
    if explained.left_out:
        yield f"{len(explained.left_out):,} groups were left out; they are listed at the end."
    yield "The service gives no features of the model: appearances are compared by their colours and edges."


def write_cleaning_list(directory: Path, explained: Explained, found: Confirmation, how: Preprocessing) -> Path:
    """Writes `cleaning.csv` and the masks that it names: the images of each finding, in pixels of the image's file."""
    positions = {each.key: index for index, each in enumerate(explained.evidence)}
    path = directory / "cleaning.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("finding", "severity", "group", "image", "left", "top", "right", "bottom", "mask", "presence"))
        for number, confirmed in enumerate(found.confirmed, start=1):
            finding = confirmed.finding
            for image in (each for each in finding.listing if each.listed):
                labelled, position = explained.images[image.key], positions[image.key]
                shape = read_image(labelled.path.read_bytes()).shape[:2]
                background = confirmed.tested.candidate.kind == "background"
                inside = explained.evidence[position].inside if background else None
                placed = _placed(confirmed.regions[position], inside, how, shape)
                name = Path("masks") / f"{number:03d}" / f"{position:06d}.png"
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(placed).save(directory / name)
                box = _box(placed)
                rows.writerow(
                    (finding.id, finding.severity, finding.group, labelled.path, *box, name, f"{image.presence:.4f}")
                )
    return path


def _placed(region: Cells, inside: Mask | None, how: Preprocessing, shape: tuple[int, int]) -> Mask:
    """Returns the pixels of a region on an image, or all but the object if it is given."""
    frame = frame_of(shape, how)
    if inside is not None:
        placed = place_mask(1 - inside.astype(np.float32), frame, shape)
    else:
        placed = place_patches(np.flatnonzero(region).tolist(), len(region), how.input_size, frame, shape)
    return np.nan_to_num(placed) >= 0.5


def _box(mask: Mask) -> tuple[int, int, int, int]:
    return box_of(mask) if mask.any() else (0, 0, 0, 0)


class _Reader:
    """Reads images and masks of objects as the model sees them; the last ones stay in memory."""

    def __init__(self, how: Preprocessing) -> None:
        self._how = how
        self.picture: Callable[[Path], Pixels] = lru_cache(_CACHED)(self._picture)
        self.mask: Callable[[Path], Mask] = lru_cache(_CACHED)(self._mask)

    def _picture(self, path: Path) -> Pixels:
        return fit_to_input(read_image(path.read_bytes()), self._how)

    def _mask(self, path: Path) -> Mask:
        try:
            with PIL.Image.open(path) as opened:
                shown = np.asarray(opened.convert("RGB")).max(2) > 0
        except OSError as error:
            raise InvalidRequest(f"the mask {path} cannot be read: {error}; replace it", field="mask") from error
        return fit_to_input(np.repeat(shown[..., None], 3, 2).astype(np.uint8) * 255, self._how)[..., 0] > 127

    def boxes(self, labelled: LabelledImage) -> Mask:
        """Returns what the boxes of an image contain."""
        inside = np.zeros((self._how.input_size,) * 2, bool)
        for box in labelled.boxes:
            inside[box.top : box.bottom, box.left : box.right] = True
        return inside


def _evidence(labelled: LabelledImage, explanation: Explanation, read: _Reader) -> Evidence:
    target, inside = explanation.target, None
    assert target is not None  # noqa: S101 - explanations without a target are skipped
    if labelled.mask is not None:
        path = labelled.mask
        inside = lambda: read.mask(path)  # noqa: E731
    elif labelled.boxes:
        inside = lambda: read.boxes(labelled)  # noqa: E731
    return Evidence(
        key=labelled.key,
        label=labelled.label,
        group=labelled.group,
        score=target.score,
        top=explanation.prediction.top[0].index if explanation.prediction and explanation.prediction.top else -1,
        saliency=saliency_of(explanation),
        picture=lambda: read.picture(labelled.path),
        read_inside=inside,
        sets=count_sets(explanation.sufficient_sets),
        concepts=concepts_of(explanation),
    )


def saliency_of(explanation: Explanation) -> NDArray[np.float32]:
    """Returns the heatmap of an explanation.

    Without one, it is the share of sufficient sets that contain each patch, or the mean of the heatmaps of the concepts
    that raise the class, weighted by how much each does.
    """
    if explanation.mask is not None:
        return _coarse(explanation.mask)
    if sets := [each.patches for each in explanation.sufficient_sets]:
        shares = np.mean([patch_mask(each.patches, each.grid, each.grid) for each in sets], axis=0)
        return np.asarray(shares, np.float32)
    fired = _fired(explanation)
    if not fired:
        return np.zeros((1, 1), np.float32)
    heatmaps = [_coarse(heatmap) for _, heatmap in fired]
    grid = min(map(len, heatmaps))
    weights = [each.contribution for each, _ in fired]
    return np.asarray(np.average([to_grid(each, grid) for each in heatmaps], axis=0, weights=weights), np.float32)


def concepts_of(explanation: Explanation) -> tuple[FiredConcept, ...]:
    """Returns the concepts that raise the class, with their heatmaps."""
    return tuple(
        FiredConcept(f"x{each.index + 1} {each.name}".strip(), _coarse(heatmap))
        for each, heatmap in _fired(explanation)
    )


def _fired(explanation: Explanation) -> list[tuple[ConceptContribution, NDArray[np.float32]]]:
    return [(each, each.heatmap) for each in explanation.concepts if each.contribution > 0 and each.heatmap is not None]


def _coarse(heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
    return to_grid(np.clip(heatmap, 0, 1), min(len(heatmap), MAX_GRID))


def _on_one_grid(found: Sequence[Evidence]) -> Sequence[Evidence]:
    """Returns images whose saliency is on the coarsest of their grids."""
    grid = min((len(each.saliency) for each in found if each.saliency.any()), default=1)
    return [
        replace(
            each,
            saliency=to_grid(each.saliency, grid),
            concepts=tuple(FiredConcept(one.name, to_grid(one.saliency, grid)) for one in each.concepts),
        )
        for each in found
    ]
