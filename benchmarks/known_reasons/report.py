"""The report of known reasons: tables with bootstrap intervals over images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from quality.statistics import Interval, bootstrap
from reports import table
from subject import machine

from known_reasons import measuring
from known_reasons.networks import SIZE, TESTING
from sagittal.synthetic import CLASSES, PARTS, RULES


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one measurement."""

    network: str
    """Digest of the network."""
    image: str
    """Name of the image; empty for the whole network."""
    what: str
    """Name of the method, or "network"."""
    figures: Mapping[str, Any]


ARMS = tuple((name, arm) for name in CLASSES for arm in range(len(RULES[name])))
"""Each reason, as the class and the index of the reason in its rule."""

FIRST = "igos++"
"""The default method: others are compared with it."""


def written(rows: Sequence[Row]) -> str:
    """Returns the section."""
    networks = [row.figures for row in rows if row.what == "network"]
    images = sorted({row.image for row in rows if row.image})
    return (
        f"## Measured\n\n`make bench-known-reasons` wrote this section ({machine()}). Networks of "
        f"{SIZE}x{SIZE} pixels: {len(networks)}. Images that no network was trained on: {len(images)}, each explained "
        "for its own class by each network that recognises it. Intervals are 95 % bootstrap intervals over images; the "
        "figure of an image is its mean over networks. Methods have their defaults.\n\n"
        + _networks(networks)
        + _heatmaps(rows)
        + _sets(rows)
    )


def _networks(networks: Sequence[Mapping[str, Any]]) -> str:
    accuracies = ", ".join(f"{each['accuracy']:.3f}" for each in networks)
    changed = np.mean([each["changed-by-background"] for each in networks])
    rows = []
    for name, arm in ARMS:
        effects = np.mean([each[f"effects-{name}-{arm}"] for each in networks], axis=0)
        reason = RULES[name][arm]
        cells = [
            f"**{effect:.1f}**" if part in reason else f"{effect:.1f}"
            for part, effect in zip(PARTS, effects, strict=True)
        ]
        rows.append([f"{name}, {' and '.join(reason)}", *cells])
    return (
        f"### Parts that the networks use\n\nAccuracy on {TESTING} other images: {accuracies}. On another background "
        f"the top class of {changed:.1%} of the images changes. The table has the mean fall of the logit of the class "
        "if a part says nothing: it gets its plain trait, is left out if it has that already, or, if the part is in no "
        "rule, gets its other traits. Bold effects should be large by the rule of the class, and others near 0.\n\n"
        + table(["class", *PARTS], rows)
        + "\n"
    )


def _by_image(rows: Sequence[Row], what: str, figure: str) -> Mapping[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.what == what and figure in row.figures:
            found.setdefault(row.image, []).append(float(row.figures[figure]))
    return {image: float(np.mean(values)) for image, values in found.items()}


def _interval(rows: Sequence[Row], what: str, figure: str) -> Interval:
    return bootstrap(list(_by_image(rows, what, figure).values()), seed=0)


def _over_first(rows: Sequence[Row], what: str, figure: str) -> str:
    """Returns how much a method's figure is above the default's, paired by image; empty for controls."""
    if what == FIRST or what in measuring.CONTROLS:
        return ""
    one, other = _by_image(rows, what, figure), _by_image(rows, FIRST, figure)
    return f"{bootstrap([one[image] - other[image] for image in one], seed=0):+.2f}"


def _heatmaps(rows: Sequence[Row]) -> str:
    lines = []
    for what in (*measuring.HEATMAPS, *measuring.CAPTUM, *measuring.CONTROLS):
        share, ranking, linear = (_interval(rows, what, figure) for figure in ("share", "ranking", "correlation"))
        others = [f"{_interval(rows, what, figure).mean:.2f}" for figure in ("background", "first")]
        spent = _interval(rows, what, "evaluations").mean
        compared = [_over_first(rows, what, figure) for figure in ("share", "ranking")]
        ranked = [f"{ranking:.2f}", compared[1], f"{linear:.2f}"]
        lines.append([what, f"{share:.2f}", compared[0], *ranked, *others, f"{spent:.0f}"])
    header = ["heatmap", "share", f"over {FIRST}", "ranking", f"over {FIRST}", "correlation", "background", "first"]
    header.append("evaluations")
    return (
        "### Heatmaps\n\n*share*: of the saliency, on the parts of the reasons that the bird has. *ranking*: rank "
        "correlation over the parts of mean saliency and true effect on this network and image; *correlation*: "
        "Pearson's. *background*: share of the saliency outside the bird. *first*: how often the part with the highest "
        "mean saliency is one that matters. The last three rows are no methods: they are the scale.\n\n"
        + table(header, lines)
        + "\n"
    )


def _sets(rows: Sequence[Row]) -> str:
    lines = []
    for what in measuring.SETS:
        for label, chosen in _kinds(rows):
            figures = [_interval(chosen, what, figure) for figure in ("recall", "precision", "alone")]
            others = [_interval(chosen, what, figure).mean for figure in ("sets", "area")]
            lines.append([what, label, *(f"{each:.2f}" for each in figures), f"{others[0]:.1f}", f"{others[1]:.2f}"])
    return (
        "### Sufficient sets\n\n"
        f"A set *names* a reason if it shows at least {measuring.NAMED:.0%} of the pixels of each of its parts. "
        "*recall*: share of the reasons of the bird that some set names, so that 1 on birds with both reasons of a "
        "disjunction means that both are found. *precision*: share of the sets that name a reason. *alone*: share "
        "of the sets that name exactly one.\n\n"
        + table(["method", "birds", "recall", "precision", "alone", "sets", "area"], lines)
        + "\n"
    )


def _kinds(rows: Sequence[Row]) -> Sequence[tuple[str, Sequence[Row]]]:
    """Returns the rows of birds with both reasons of the disjunction, of one trait, and of a conjunction."""
    both = {
        image for row in rows if row.what == measuring.SETS[0] for image in [row.image] if row.figures["reasons"] == 2
    }
    single = {row.image for row in rows if row.image.startswith(("woodpecker", "redstart"))} - both
    return [
        ("both reasons of a disjunction", [row for row in rows if row.image in both]),
        ("a reason of one part", [row for row in rows if row.image in single]),
        ("a reason of two parts", [row for row in rows if row.image and row.image not in both | single]),
    ]
