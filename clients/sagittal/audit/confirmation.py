"""From candidates to findings: tests every candidate, controls false discoveries, and states how severe each one is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.audit.candidates import WHOLE, Candidate, find_candidates, suspects
from sagittal.audit.evidence import Cells, Evidence, box_of, to_pixels
from sagittal.audit.findings import SEVERITIES, Finding, ListedImage, Thresholds
from sagittal.audit.interventions import Laboratory, Score, Tested
from sagittal.audit.statistics import adjust

#: Most severe that a finding can be if the object is unknown, by its first kind: it may be the object itself.
_MOST_IF_UNKNOWN: Mapping[str, str] = {"appearance": "low", "place": "medium", "border": "medium"}

OnTested = Callable[[int, int], None]
"""Called with the number of candidates that were tested, and of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """A finding, with the candidate from which evidence images are drawn."""

    finding: Finding
    tested: Tested
    regions: Mapping[int, Cells]
    """Where it is in each image of its group, or would be, by the position of the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Confirmation:
    """The result of a search."""

    confirmed: Sequence[Confirmed]
    """Findings, most severe first."""
    tested: Sequence[Mapping[str, Any]]
    """All candidates with their p-values."""
    laboratory: Laboratory
    """Makes the changed images of the findings again."""


def confirm(
    evidence: Sequence[Evidence],
    score: Score,
    thresholds: Thresholds,
    *,
    seed: int = 0,
    on_tested: OnTested = lambda _done, _all: None,
) -> Confirmation:
    """Searches explained images for spurious reasons and confirms them by interventions.

    Args:
        evidence: The explained images.
        score: Scores images; called with all images of one test at once.
        thresholds: Limits from which a candidate is a finding.
        seed: Seed of all random choices.
        on_tested: Called after each test.
    """
    laboratory = Laboratory(evidence, score, seed)
    tests = _test_all(laboratory, evidence, thresholds, on_tested)
    places = [_place(evidence, each.candidate) for each in tests]
    adjusted = adjusted_values(tests, places, thresholds)
    rows, found = [], []
    for number, (each, q, place) in enumerate(zip(tests, adjusted, places, strict=True), start=1):
        severity, by = severity_of(each, q, place, thresholds)
        rows.append(_row(each, q, place, severity))
        if severity:
            name = f"{each.candidate.group}/{each.candidate.kind}-{number}"
            regions = laboratory.regions(each.candidate)
            listing = _listing(evidence, regions, laboratory.presence(each, regions), each.candidate)
            finding = _finding(name, evidence, listing, each, q, place, severity, by)
            found.append(Confirmed(finding, each, regions))
    found.sort(key=lambda each: (SEVERITIES.index(each.finding.severity), each.finding.effect), reverse=True)
    return Confirmation(found, rows, laboratory)


def _test_all(
    laboratory: Laboratory, evidence: Sequence[Evidence], thresholds: Thresholds, on_tested: OnTested
) -> Sequence[Tested]:
    """Tests all candidates: regions, then what matters in a few images only, then backgrounds and colours of groups.

    An image in which something that was tested before changes the model is no example of a background or a colour.
    """
    candidates = find_candidates(evidence)
    turns = [(each, False) for each in candidates if each.kind not in WHOLE]
    turns += [(each, True) for each in suspects(evidence)]
    turns += [(each, False) for each in candidates if each.kind in WHOLE]
    tests = []
    for number, (each, is_suspect) in enumerate(turns, start=1):
        chosen = laboratory.screen(each, thresholds.medium) if is_suspect else laboratory.without_known(each)
        if chosen is not None:
            tests.append(laboratory.test(chosen))
            if (is_suspect or each.kind not in WHOLE) and _is_strong(tests[-1], thresholds):
                laboratory.set_apart(chosen)
        on_tested(number, len(turns))
    return tests


def _is_strong(tested: Tested, thresholds: Thresholds) -> bool:
    """Returns whether a candidate alone, before the adjustment for all, is a finding of severity medium."""
    effects = [each.low for each in (tested.removed, tested.added) if each is not None]
    return tested.p <= thresholds.false_discovery_rate and max(effects, default=0.0) >= thresholds.medium


def adjusted_values(
    tests: Sequence[Tested], places: Sequence[tuple[str, float | None]], thresholds: Thresholds
) -> list[float]:
    """Returns the adjusted p-values: 1 for candidates that are no findings whatever their p-value.

    A candidate on the object, or with a weak effect, may have a very small p-value. Counted as a discovery, it would
    let more of the others pass, of which all findings could be false.
    """
    able = [bool(severity_of(each, 0.0, place, thresholds)[0]) for each, place in zip(tests, places, strict=True)]
    return adjust([each.p if counts else 1.0 for each, counts in zip(tests, able, strict=True)])


def _place(evidence: Sequence[Evidence], candidate: Candidate) -> tuple[str, float | None]:
    """Returns where a candidate is, and its share outside the object."""
    if candidate.kind in WHOLE:
        return {"background": "outside the object", "colour": "the whole image"}[candidate.kind], None
    shares = [evidence[index].outside_share(region) for index, region in candidate.regions.items()]
    known = [share for share in shares if share is not None]
    if not known:
        return "unknown", None
    mean = float(np.mean(known))
    return "outside the object" if mean >= 0.5 else "on the object", mean


def severity_of(
    tested: Tested, q: float, place: tuple[str, float | None], thresholds: Thresholds
) -> tuple[str, tuple[str, ...]]:
    """Returns the severity of a tested candidate, empty if it is no finding, and the tests that confirmed it."""
    if q > thresholds.false_discovery_rate or place[0] == "on the object":
        return "", ()
    effects = {"removing": tested.removed, "adding": tested.added}
    by = {
        name: effect.low
        for name, effect in effects.items()
        if effect is not None and 2 * effect.p <= thresholds.false_discovery_rate and effect.low >= thresholds.low
    }
    if not by:
        return "", ()
    severity = thresholds.severity(max(by.values()))
    if place[0] == "unknown":
        # without the object's evidence any score falls, so that removing alone says little
        most = _MOST_IF_UNKNOWN.get(tested.candidate.kind, SEVERITIES[-1]) if "adding" in by else SEVERITIES[0]
        severity = min(severity, most, key=SEVERITIES.index)
    return severity, tuple(by)


def _row(tested: Tested, q: float, place: tuple[str, float | None], severity: str) -> Mapping[str, Any]:
    candidate = tested.candidate
    return {
        "group": candidate.group,
        "kinds": list(candidate.kinds),
        "images": len(candidate.regions),
        "place": place[0],
        "p": tested.p,
        "q": q,
        "removed": tested.removed.mean if tested.removed else None,
        "added": tested.added.mean if tested.added else None,
        "severity": severity,
    }


def _finding(
    name: str,
    evidence: Sequence[Evidence],
    listing: tuple[ListedImage, ...],
    tested: Tested,
    q: float,
    place: tuple[str, float | None],
    severity: str,
    by: tuple[str, ...],
) -> Finding:
    candidate, added = tested.candidate, tested.added
    pasted = float(np.mean([score for _, _, score in tested.pasted])) if tested.pasted else None
    return Finding(
        id=name,
        group=candidate.group,
        kinds=candidate.kinds,
        severity=severity,
        place=place[0],
        confirmed_by=by,
        images=len(candidate.regions),
        of=sum(each.group == candidate.group for each in evidence),
        removed=tested.removed,
        added=added,
        q=q,
        chance=candidate.chance,
        score=float(np.mean([evidence[index].score for index in candidate.regions])),
        score_removed=float(np.mean([score for _, score in tested.without])) if tested.without else None,
        score_added=pasted,
        score_added_control=pasted - added.mean if pasted is not None and added is not None else None,
        outside_share=place[1],
        kept=tested.kept,
        box=_usual_box(evidence, candidate),
        fixed=candidate.fixed is not None,
        concept=candidate.concept,
        listing=listing,
    )


def _usual_box(evidence: Sequence[Evidence], candidate: Candidate) -> tuple[int, int, int, int]:
    size = len(evidence[0].picture())
    boxes = [box_of(to_pixels(region, size)) for region in candidate.regions.values()]
    left, top, right, bottom = (int(edge) for edge in np.median(boxes, axis=0))
    return left, top, right, bottom


def _listing(
    evidence: Sequence[Evidence], regions: Mapping[int, Cells], presences: Mapping[int, float], candidate: Candidate
) -> tuple[ListedImage, ...]:
    having = [presence for index, presence in presences.items() if index in candidate.regions]
    others = [presence for index, presence in presences.items() if index not in candidate.regions]
    least = (np.mean(having) + np.mean(others)) / 2 if others else min(having)
    size = len(evidence[0].picture())
    found = [
        ListedImage(
            key=evidence[index].key, presence=presence, listed=bool(presence >= least),
            box=box_of(to_pixels(regions[index], size)),
        )
        for index, presence in presences.items()
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda each: -each.presence))
