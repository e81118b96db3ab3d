"""Audits of networks that were trained on planted cues, and of networks that were not.

`python benchmarks/audit.py [--minutes 15] [--write docs/audit.md]`: small networks learn drawn birds, of which one
class has a planted mark in some images. Each network's training images are explained and audited in this process, with
the same search and interventions as `sagittal audit`. Results are stored, so that a run that was ended continues.
"""

import argparse
import hashlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_reasons.networks import (
    MEAN,
    SIZE,
    STD,
    Recipe,
    accuracy,
    digest_of,
    labels_of,
    logits,
    to_input,
    train,
    untrained,
)  # fmt: skip
from numpy.typing import NDArray
from reports import table, write_section
from torch import nn

from sagittal.audit import candidates, confirmation, interventions, statistics
from sagittal.audit.candidates import WHOLE
from sagittal.audit.confirmation import Confirmed, confirm
from sagittal.audit.evidence import Evidence, to_grid, to_pixels
from sagittal.audit.findings import SEVERITIES, Audit, Thresholds, compare
from sagittal.explain import GradCAM, Occlusion
from sagittal.explain.explainer import Explainer
from sagittal.explain.library import explain
from sagittal.explain.measures.curves import Metrics
from sagittal.synthetic import CLASSES, MARKS, Mark, Sample, sample_images

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "audit"

#: Images that a network is trained on, and epochs.
TRAINING, EPOCHS = 1_800, 12

#: Training images that are audited: of the class with the mark, and of each other class.
OF_MARKED, OF_OTHERS = 300, 20

#: Images of other classes on which an intervention checks whether a network learned the mark.
CHECKED, CHECKED_SEED = 120, 2_000_003

#: Rise of the marked class's probability by the mark from which a network has learned it.
LEARNED = 0.1

#: Share of the images in which a finding was found that have the mark, from which it is the planted cause.
PLANTED = 0.8

#: Heatmaps of the audits: a quick method, since the images are small and processor time is short.
METHOD = Occlusion(grid=10, window=2)

#: Severity from which a finding counts.
THRESHOLD = "medium"


@dataclass(frozen=True, slots=True)
class Variant:
    """A network and what was planted in its training images; no kind means a clean one."""

    kind: str = ""
    share: float = 0.0
    seed: int = 0
    marked: str = "sparrow"
    """The class with the mark; sparrows have no other sign of their own, so that networks learn it readily."""

    @property
    def mark(self) -> Mark | None:
        """The planted mark."""
        return Mark(self.kind, {self.marked: self.share}) if self.kind else None

    @property
    def recipe(self) -> Recipe:
        """The network."""
        return Recipe(seed=self.seed, images=TRAINING, epochs=EPOCHS, mark=self.mark)


def variants() -> list[Variant]:
    """Returns 20 variants with a mark and 20 without, in turn, the largest shares first.

    The search was developed on networks with seeds below 300.
    """
    shares = [(kind, share) for share in (0.3, 0.1, 0.05) for kind in MARKS]
    shares += [("printed", 0.2), ("moving", 0.2)]
    found = []
    for seed, (kind, share) in enumerate(shares, start=300):
        found += [Variant(kind, share, seed), Variant(seed=100 + seed)]
    return found


@cache
def clean_images() -> list[Sample]:
    """Returns the training images without marks."""
    return list(sample_images(TRAINING, size=SIZE))


def training_images(variant: Variant) -> list[Sample]:
    """Returns the training images of a variant. Marks are drawn on the same images for all variants."""
    mark, generator = variant.mark, np.random.default_rng(variant.seed)
    found = []
    for each in clean_images():
        if mark is None or generator.random() >= mark.fractions.get(each.label, 0.0):
            found.append(each)
        else:
            image, pixels = mark.apply(each.drawing, seed=int(generator.integers(2**31)))
            found.append(Sample(each.label, each.scene, each.drawing, image, pixels))
    return found


def network_of(variant: Variant, samples: Sequence[Sample]) -> nn.Sequential:
    """Returns the trained network of a variant, from the cache if it is there."""
    path = CACHE / f"{digest_of(variant.recipe)}.pt"
    if path.exists():
        network = untrained(variant.recipe.architecture)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval().requires_grad_(False)
    network = train(variant.recipe, stacked(samples), labels_of(samples))
    torch.save(network.state_dict(), path)
    return network


def rise_by_mark(variant: Variant, network: nn.Module) -> float:
    """Returns the rise of the marked class's probability if images of other classes get the mark."""
    mark, target = variant.mark, CLASSES.index(variant.marked)
    assert mark is not None
    others = [each for each in sample_images(CHECKED, seed=CHECKED_SEED, size=SIZE) if each.label != variant.marked]
    plain = np.stack([each.image for each in others])
    marked = np.stack([mark.apply(each.drawing, seed=number)[0] for number, each in enumerate(others)])
    before, after = (logits(network, images).softmax(1)[:, target].mean() for images in (plain, marked))
    return float(after - before)


def heatmap(network: nn.Module, sample: Sample, method: Explainer) -> Any:
    """Returns the explanation of an image's own class."""
    target = CLASSES.index(sample.label)
    return explain(
        network, to_input(sample.image), method, target=target, metrics=Metrics(curves=False),
        black=torch.full((3, 1, 1), -MEAN / STD),
    )  # fmt: skip


def evidence_of(network: nn.Module, samples: Sequence[Sample]) -> list[Evidence]:
    """Returns the explained images."""
    found = []
    for number, each in enumerate(samples):
        explanation = heatmap(network, each, METHOD)
        found.append(
            Evidence(
                key=str(number), label=CLASSES.index(each.label), group=each.label, score=explanation.score,
                top=explanation.prediction.top[0].index, saliency=to_grid(explanation.mask, METHOD.grid),
                picture=lambda each=each: each.image, read_inside=lambda each=each: each.drawing.bird,
            )
        )  # fmt: skip
    return [each for each in found if each.score >= 0.1]


def scorer(network: nn.Module) -> Any:
    """Returns the scores of a network as an audit asks for them."""

    def score(edited: Sequence[tuple[NDArray[np.uint8], int]]) -> list[float]:
        probabilities = logits(network, np.stack([image for image, _ in edited])).softmax(1)
        return [float(row[label]) for row, (_, label) in zip(probabilities, edited, strict=True)]

    return score


def audited_images(variant: Variant, samples: Sequence[Sample]) -> list[Sample]:
    """Returns the training images that are audited; of a clean network as many, equally of all classes."""
    total = OF_MARKED + OF_OTHERS * (len(CLASSES) - 1)
    found = []
    for name in CLASSES:
        of_class = [each for each in samples if each.label == name]
        number = total // len(CLASSES) if not variant.kind else OF_MARKED if name == variant.marked else OF_OTHERS
        found += of_class[:number]
    return found


def measure(variant: Variant) -> dict[str, Any]:
    """Trains and audits one network."""
    began = time.process_time()
    everything = training_images(variant)
    network = network_of(variant, everything)
    samples = audited_images(variant, everything)
    evidence = evidence_of(network, samples)
    found = confirm(evidence, scorer(network), Thresholds())
    severe = [each for each in found.confirmed if at_least(each.finding.severity)]
    result = asdict(variant) | {
        "findings": [asdict(each.finding) for each in found.confirmed],
        "severe": len(severe),
        "elsewhere": sum(each.finding.group != variant.marked for each in severe) if variant.kind else len(severe),
        "tested": len(found.tested),
        "seconds": 0.0,
    }
    if variant.kind:
        result |= {"rise": rise_by_mark(variant, network)} | planted(variant, samples, evidence, severe, network)
    return result | {"seconds": time.process_time() - began}


def at_least(severity: str) -> bool:
    """Returns whether a severity reaches the threshold."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(THRESHOLD)


def planted(
    variant: Variant,
    samples: Sequence[Sample],
    evidence: Sequence[Evidence],
    severe: Sequence[Confirmed],
    network: nn.Module,
) -> dict[str, Any]:
    """Returns the rank of the planted cause among the findings, and how well it finds images and pixels.

    An image has the cause as strongly as it has it by any finding that is the planted cause.
    """
    marked = {str(number) for number, each in enumerate(samples) if each.mark is not None}
    causes = [(rank, each) for rank, each in enumerate(severe, start=1) if is_planted(variant, evidence, each, marked)]
    if not causes:
        return {"marked_images": len(marked), "rank": 0}
    presence: dict[str, float] = {}
    for _, each in causes:
        for image in each.finding.listing:
            presence[image.key] = max(presence.get(image.key, 0.0), image.presence)
    has = np.array([key in marked for key in presence])
    values = np.array(list(presence.values()))
    rank, first = causes[0]
    cells = {evidence[index].key: region for index, region in first.tested.candidate.regions.items()}
    both = sorted(marked & cells.keys())
    return {
        "marked_images": len(marked), "rank": rank, "causes": [each.finding.id for _, each in causes],
        "auroc": auroc_of(has, values), "ap": precision_of(has, values), "kinds": first.finding.kinds,
        "iou": float(np.mean([iou(to_pixels(cells[key], SIZE), samples[int(key)].mark) for key in both])),
        "cam": float(np.mean([grad_cam_iou(network, samples[int(key)]) for key in both])),
    }  # fmt: skip


def is_planted(variant: Variant, evidence: Sequence[Evidence], found: Confirmed, marked: set[str]) -> bool:
    """Returns whether a finding is the planted cause: most of the images in which it was found have the mark."""
    keys = {evidence[index].key for index in found.tested.candidate.regions}
    return found.finding.group == variant.marked and len(marked & keys) >= PLANTED * len(keys)


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_] | None) -> float:
    """Returns intersection over union of pixels."""
    assert other is not None
    return float((one & other).sum() / max((one | other).sum(), 1))


def grad_cam_iou(network: nn.Module, sample: Sample) -> float:
    """Returns the intersection over union of the mark and Grad-CAM at half of its peak."""
    saliency = to_grid(heatmap(network, sample, GradCAM()).mask, SIZE)
    return iou(saliency >= saliency.max() / 2, sample.mark)


def auroc_of(has: NDArray[np.bool_], value: NDArray[np.float64]) -> float:
    """Returns the probability that an image with the mark has the larger value than one without; ties count half."""
    if has.all() or not has.any():
        return 0.0
    differences = value[has][:, None] - value[~has][None]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def precision_of(has: NDArray[np.bool_], value: NDArray[np.float64]) -> float:
    """Returns the average precision."""
    ordered = has[np.argsort(-value, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1))[ordered].mean())


def retrain(variant: Variant, result: dict[str, Any]) -> dict[str, Any]:
    """Trains and audits a network without the images that the findings of the planted cause list for cleaning."""
    listing = [image for each in severe_of(result) if each["id"] in result["causes"] for image in each["listing"]]
    everything = training_images(variant)
    audited = audited_images(variant, everything)
    dropped = {id(audited[int(each["key"])]) for each in listing if each["listed"]}
    kept = [each for each in everything if id(each) not in dropped]
    before, after = network_of(variant, everything), train(variant.recipe, stacked(kept), labels_of(kept))
    samples = list(sample_images(CHECKED, seed=CHECKED_SEED, size=SIZE))
    again = confirm(
        evidence_of(after, [each for each in audited if id(each) not in dropped]), scorer(after), Thresholds()
    )
    return {
        "dropped": len(dropped),
        "cleaned_rise": rise_by_mark(variant, after),
        "accuracy": accuracy(before, samples),
        "cleaned_accuracy": accuracy(after, samples),
        "gone": not any(
            each.finding.group == variant.marked and at_least(each.finding.severity) for each in again.confirmed
        ),
    }


def stacked(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """Returns the pixels of images, of shape (n, side, side, 3)."""
    return np.stack([each.image for each in samples])


def severe_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the findings of a stored result that count."""
    return [each for each in result["findings"] if at_least(each["severity"])]


def measured(variant: Variant) -> dict[str, Any] | None:
    """Returns the stored result of a variant."""
    path = _result_path(variant)
    return json.loads(path.read_text()) if path.exists() else None


def _result_path(variant: Variant) -> Path:
    return CACHE / _digest() / f"{variant.kind or 'clean'}-{variant.share}-{variant.seed}.json"


@cache
def _digest() -> str:
    """Returns the digest of what results depend on beside the network."""
    sources = [inspect.getsource(part) for part in (candidates, confirmation, interventions, statistics)]
    return hashlib.sha256(json.dumps([OF_MARKED, OF_OTHERS, sources]).encode()).hexdigest()[:12]


def report(results: Sequence[dict[str, Any]]) -> str:
    """Returns the tables as Markdown."""
    poisoned = [each for each in results if each["kind"]]
    learned = [each for each in poisoned if each["rise"] >= LEARNED]
    clean = [each for each in results if not each["kind"]]
    found = [each for each in learned if each["rank"]]
    early = [each for each in found if each["share"] <= 0.05]
    quiet = sum(not each["severe"] for each in clean)
    recall, alarms, pairs = gate(learned, clean)

    def mean(rows: Sequence[dict[str, Any]], name: str) -> str:
        values = [each[name] for each in rows if each.get(name) is not None]
        return f"{np.mean(values):.2f}" if values else "not measured"

    regions = [each for each in found if each["kinds"][0] not in WHOLE]
    retrained = [each for each in found if "gone" in each]
    gone, better = (sum(map(test, retrained)) for test in (is_gone, is_better))
    bars = [
        ("planted cause is the first finding", "38 of 40",
         f"{sum(each['rank'] == 1 for each in found)} of {len(learned)} networks that learned it"),
        ("retrieval AUROC at 5 %", "0.95", f"{mean(early, 'auroc')} (networks: {len(early)})"),
        ("retrieval AP at 5 %", "0.8", f"{mean(early, 'ap')} (networks: {len(early)})"),
        ("retrieval AUROC and AP at all shares", "", f"{mean(found, 'auroc')} and {mean(found, 'ap')}"),
        ("mask IoU of marks, at 64 pixels", "0.5 (at 224)", mean(regions, "iou")),
        ("IoU of Grad-CAM on the same images", "below 0.3", mean(regions, "cam")),
        ("clean networks without a finding", "19 of 20", f"{quiet} of {len(clean)}"),
        ("finding gone after training without the listed images", "all", f"{gone} of {len(retrained)}"),
        ("accuracy on unmarked images rises by that", "all", f"{better} of {len(retrained)}"),
        ("effect of the mark before and after", "", f"{mean(retrained, 'rise')} and {mean(retrained, 'cleaned_rise')}"),
        ("pairs in which `compare` catches the shortcut", "0.95", recall),
        ("pairs of clean networks with an alarm", "0.05", f"{alarms} ({pairs} pairs)"),
    ]  # fmt: skip
    rows = [
        (each["kind"], f"{each['share']:.0%}", f"{each['rise']:+.2f}", each["marked_images"],
         each["rank"] or ("not learned" if each["rise"] < LEARNED else "not found"), ", ".join(each.get("kinds", ())),
         *(f"{each[name]:.2f}" if each.get(name) is not None else "" for name in ("auroc", "ap", "iou", "cam")),
         each["elsewhere"])
        for each in poisoned
    ]  # fmt: skip
    head = ("mark", "share", "rise by it", "marked images", "rank", "found as", "AUROC", "AP", "IoU", "Grad-CAM",
            "findings in other classes")  # fmt: skip
    seconds = np.mean([each["seconds"] for each in results]) if results else 0.0
    intro = (
        f"{len(results)} networks ({len(poisoned)} with a planted mark, of which {len(learned)} learned it, and "
        f"{len(clean)} clean ones), {TRAINING:,} training images of {SIZE} pixels each, {seconds:.0f} s of a "
        "processor for each network. A network learned its mark if the mark raises the class's probability on images "
        f"of other classes by {LEARNED} or more. A finding of severity {THRESHOLD} or above counts; it is the planted "
        f"cause if it is in the marked class and {PLANTED:.0%} of the images in which it was found have the mark. The "
        "IoU is over the marked images in whose explanations the finding is."
    )
    return "\n\n".join((intro, table(("measure", "bar", "measured"), bars), table(head, rows)))


def is_gone(result: dict[str, Any]) -> bool:
    """Returns whether the marked class has no finding after training without the listed images."""
    return bool(result["gone"])


def is_better(result: dict[str, Any]) -> bool:
    """Returns whether more unmarked images get their class then."""
    return bool(result["cleaned_accuracy"] > result["accuracy"])


def gate(learned: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]]) -> tuple[str, str, int]:
    """Returns how often `compare` fails from a clean network to one with a shortcut, and to another clean one."""
    before = {each["seed"]: audit_of(each) for each in clean}
    caught = [fails(one, audit_of(each)) for each in learned for one in before.values()]
    alarms = [fails(one, other) for one, other in combinations(before.values(), 2)]
    share = [f"{np.mean(found):.2f}" if found else "not measured" for found in (caught, alarms)]
    return f"{share[0]} ({len(caught)} pairs)", share[1], len(alarms)


def fails(old: Audit, new: Audit) -> bool:
    """Returns whether a pipeline with `sagittal audit compare --fail-on` stops."""
    return any(each.worse and at_least(each.finding.severity) for each in compare(old, new))


def audit_of(result: dict[str, Any]) -> Audit:
    """Returns the audit of a stored result, as far as a comparison reads it."""
    return Audit.parse(
        {
            "format": 1, "model": "birds", "model_version": str(result["seed"]), "model_digest": "", "source": "",
            "method": "occlusion", "size": SIZE, "images": 0, "groups": {}, "tested": [],
            "doubtful": [], "notes": [], "thresholds": asdict(Thresholds()), "findings": result["findings"],
        }
    )  # fmt: skip


def main() -> None:
    """Measures what is missing while there is time, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="processor time, after which no network is begun")
    parser.add_argument("--write", type=Path, help="file whose section `audit` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (CACHE / _digest()).mkdir(parents=True, exist_ok=True)
    for variant in variants():
        if measured(variant) is None and time.process_time() < options.minutes * 60:
            result = measure(variant)
            _result_path(variant).write_text(json.dumps(result, default=float))
            shown = {name: result.get(name) for name in ("kind", "share", "rise", "rank", "auroc", "severe", "seconds")}
            print(shown, flush=True)
    for variant in variants():
        result = measured(variant)
        if result and result.get("rank") and "gone" not in result and time.process_time() < options.minutes * 60:
            result |= retrain(variant, result)
            _result_path(variant).write_text(json.dumps(result, default=float))
            print({name: result[name] for name in ("kind", "share", "rise", "cleaned_rise", "gone")}, flush=True)
    results = [found for variant in variants() if (found := measured(variant)) is not None]
    text = report(results)
    print(text)
    if options.write:
        write_section(options.write, "audit", text)


if __name__ == "__main__":
    main()
