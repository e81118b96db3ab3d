"""The report of an audit: one HTML file with the findings, their evidence images, and everything that was tested."""

from collections.abc import Iterator, Sequence

import numpy as np

from sagittal.audit.candidates import KINDS
from sagittal.audit.confirmation import Confirmed
from sagittal.audit.evidence import Evidence, Pixels, to_pixels
from sagittal.audit.findings import Audit, Change, Finding, describe
from sagittal.audit.interventions import Laboratory
from sagittal.audit.statistics import Effect
from sagittal.audit.sufficiency import (
    AREAS,
    OVERLAPS,
    STATISTICS,
    Estimate,
    SetStatistics,
    Sufficiency,
    compare_sets,
    why_not_comparable,
)
from sagittal.client.html import escape, percent, shares_svg, table_html
from sagittal.client.report import facts_table, faint_line, figure, picture_tag, report_page, section
from sagittal.imaging.overlays import Picture, show_only
from sagittal.imaging.view import View

#: Images of each finding that are shown as they are, and as they were changed.
_SHOWN = 3

#: Effect size above which the page gives no figure: on images that are nearly equal, it says nothing.
_LARGE = 20

#: Rows of a list that the page shows.
_ROWS = 200

#: Rows of a comparison of sufficient sets that the page shows: each group has one for each area and overlap.
_COMPARED = 1_000

#: Colours of the locality curve, and of its interval.
_STRONG, _FAINT = "#1f2328", "#c4cbd3"


def audit_html(audit: Audit, confirmed: Sequence[Confirmed], laboratory: Laboratory) -> str:
    """Returns the report of an audit as a whole HTML document."""
    number = len(audit.findings)
    title = f"Audit of {audit.model}@{audit.model_version}: {number} finding{'' if number == 1 else 's'}"
    facts = (
        f"{audit.images:,} images of {len(audit.groups):,} groups", audit.method,
        f"{len(audit.tested):,} candidates tested", f"source {audit.source}",
    )  # fmt: skip
    parts = [
        f"<header><h1>{escape(title)}</h1>{faint_line(facts)}</header>",
        *(f'<p class="warn">{escape(note)}</p>' for note in audit.notes),
        *(
            _finding(number, each, laboratory, audit.thresholds.false_discovery_rate)
            for number, each in enumerate(confirmed, start=1)
        ),
        "" if confirmed else "<p>No candidate was confirmed by an intervention.</p>",
        section("Sufficient sets", _sets(audit)),
        section("Everything that was tested", _tested(audit)),
        section("Images", _images(audit)),
    ]
    return report_page(escape(title), parts)


def comparison_html(old: Audit, new: Audit, changes: Sequence[Change]) -> str:
    """Returns the changes between two audits as a whole HTML document."""
    title = f"{old.model}@{old.model_version} and {new.model}@{new.model_version}"
    rows = [
        (each.state, each.finding.severity, _effect_text(each.before), _effect_text(each.after), describe(each.finding))
        for each in changes
    ]
    columns = ("change", "severity", "effect before", "effect after", "finding")
    table = table_html(columns, rows) if rows else "<p>Neither audit has a finding.</p>"
    parts = [
        f"<header><h1>{escape(title)}</h1></header>",
        section("Changes", table),
        section("Sufficient sets", _sets_compared(old, new)),
    ]
    return report_page(escape(title), parts)


def _sets(audit: Audit) -> str:
    sets = audit.sufficient_sets
    if sets is None:
        return f"<p>{escape(without_sets(audit))}</p>"
    shown = sets.rows[: _ROWS + 1]
    left = len(sets.rows) - len(shown)
    note = f"and {left:,} groups more, in findings.json" if left else ""
    within = [(_name(group, each), *map(_share, each.locality)) for group, each in shown]
    numbers = [
        (_name(group, each), *(estimate.text for estimate in each.diverse), *map(_share, each.several))
        for group, each in shown
    ]
    overlaps = [STATISTICS[name](at) for name in ("diverse", "several") for at in OVERLAPS]
    return (
        "<p>Images with a sufficient set within an area, as a share of the image (the locality curve), with 95 % "
        f"intervals. The grey lines are the interval of all images.</p>{_locality_svg(sets)}"
        + _wide(table_html(("images", *(f"{area:.0%}" for area in AREAS)), within, note))
        + "<p>Mean number of diverse sets of an image, of which no two share more patches than the overlap; and the "
        f"share of images with several such sets. {escape(sets.bound)}</p>"
        + _wide(table_html(("images", *overlaps), numbers, note))
    )


def without_sets(audit: Audit) -> str:
    """Returns why an audit has no statistics of sufficient sets."""
    return (
        f"{audit.method} gives no sufficient sets, so there is no locality curve and no number of explanations. For "
        "them, audit with the method minimal-sufficient-explanations or structured-attention-graph."
    )


def _wide(table: str) -> str:
    return f'<div class="scroll" style="white-space:nowrap">{table}</div>'


def _name(group: str | None, statistics: SetStatistics) -> str:
    return f"{_title(group)}, {statistics.images:,}"


def _title(group: str | None) -> str:
    return "all images" if group is None else group


def _share(estimate: Estimate) -> str:
    return f"{estimate.mean:.0%} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def _locality_svg(sets: Sufficiency) -> str:
    curve = sets.whole.locality
    lines = [
        ([0.0, *(each.at for each in curve)], [0.0, *(getattr(each, end) for each in curve)], colour)
        for end, colour in (("low", _FAINT), ("high", _FAINT), ("mean", _STRONG))
    ]
    return shares_svg(lines, "share of images with a sufficient set within an area", 360, 240)


def _sets_compared(old: Audit, new: Audit) -> str:
    if old.sufficient_sets is None or new.sufficient_sets is None:
        return f"<p>{escape(without_sets(old if old.sufficient_sets is None else new))}</p>"
    doubt = why_not_comparable(old.sufficient_sets, new.sufficient_sets)
    warning = f'<p class="warn">{escape(doubt)}</p>' if doubt else ""
    changes = list(compare_sets(old.sufficient_sets, new.sufficient_sets))
    rows = [
        (_title(each.group), each.name, each.before.text, each.after.text, "changed" if each.changed else "same")
        for each in changes[:_COMPARED]
    ]
    left = len(changes) - len(rows)
    columns = ("images", "statistic", "before", "after", "change")
    return warning + _wide(table_html(columns, rows, f"and {left:,} more, printed with --json" if left else ""))


def _effect_text(finding: Finding | None) -> str:
    if finding is None:
        return ""
    low, high = finding.interval
    return f"{finding.effect:.2f} ({low:.2f} to {high:.2f})"


def _finding(number: int, each: Confirmed, laboratory: Laboratory, rate: float) -> str:
    finding = each.finding
    what = ", ".join(KINDS[kind] for kind in finding.kinds)
    pictures = f'<div class="grid">{"".join(_pictures(each, laboratory))}</div>'
    title = escape(f"{number}. {finding.group}: {what} ({finding.severity})")
    return section(title, facts_table(_facts(finding, rate)) + pictures)


def _facts(finding: Finding, rate: float) -> Iterator[tuple[str, str]]:
    yield "concept", finding.concept
    yield "found in", f"{finding.images:,} of {finding.of:,} images"
    if finding.removed is not None and finding.score_removed is not None:
        after = f"{percent(finding.score)} with it, {percent(finding.score_removed)} without it"
        yield "removing it", f"{after}; {_measured(finding.removed.change(-1))}"
    if finding.added is not None and finding.score_added is not None and finding.score_added_control is not None:
        control = percent(max(finding.score_added_control, 0.0))
        after = f"{percent(finding.score_added)} on images of other classes, {control} with other regions"
        yield "adding it", f"{after}; {_measured(finding.added)}"
    yield "confirmed by", " and ".join(finding.confirmed_by)
    yield "adjusted p-value", f"{finding.q:.2g} (at most {rate:g})"
    yield "place", finding.place
    if finding.kept is not None:
        yield "score with the region alone", f"{percent(finding.kept)} of the unmasked score"
    yield "images to clean", f"{sum(image.listed for image in finding.listing):,}, in cleaning.csv"


def _measured(effect: Effect) -> str:
    size = f"{abs(effect.size):.1f}" if abs(effect.size) < _LARGE else f"above {_LARGE}"
    return f"{effect.text} beyond the controls (effect size {size}, {effect.images} images)"


def _pictures(each: Confirmed, laboratory: Laboratory) -> Iterator[str]:
    candidate, evidence = each.tested.candidate, laboratory.evidence
    for index, score in each.tested.without[:_SHOWN]:
        image, region = evidence[index], candidate.regions[index]
        shown = _shown(image.picture())
        yield figure(picture_tag(shown, "image"), image.key, image.score)
        heat = View(shown, shown).painted(image.saliency)
        yield figure(picture_tag(heat, "heatmap"), "Heatmap", None)
        if not region.all():
            part = show_only(shown, to_pixels(region, len(shown)).astype(np.float32))
            yield figure(picture_tag(part, "region"), "Region", None)
        without = _shown(laboratory.without(candidate, index, region))
        yield figure(picture_tag(without, "without"), "Without it", score)
    for source, receiver, score in each.tested.pasted[:_SHOWN]:
        changed = laboratory.transfer(candidate, source, receiver, candidate.regions[source])
        name = f"{evidence[receiver].key} with it"
        yield figure(picture_tag(_shown(changed), "with the region"), name, score, _group_of(evidence[receiver]))


def _group_of(image: Evidence) -> str:
    return f"an image of {image.group}"


def _shown(picture: Pixels) -> Picture:
    return np.asarray(picture / 255, np.float32)


def _tested(audit: Audit) -> str:
    columns = ("group", "kinds", "images", "place", "fall if removed", "rise if added", "p", "adjusted p", "severity")
    ordered = sorted(audit.tested, key=lambda each: each["q"])[:_ROWS]
    rows = [
        (
            each["group"], ", ".join(each["kinds"]), each["images"], each["place"],
            *("" if value is None else f"{value:.3f}" for value in (each["removed"], each["added"])),
            each["p"], each["q"], each["severity"] or "no finding",
        )
        for each in ordered
    ]  # fmt: skip
    left = len(audit.tested) - len(ordered)
    return table_html(columns, rows, f"and {left:,} more, in findings.json" if left else "") if rows else "<p>None.</p>"


def _images(audit: Audit) -> str:
    def listed(keys: Sequence[str]) -> str:
        more = f" and {len(keys) - _ROWS:,} more" if len(keys) > _ROWS else ""
        return f"{len(keys):,}: {', '.join(keys[:_ROWS])}{more}" if keys else ""

    return facts_table(
        [
            *(("searched", _searched(audit, name)) for name in list(audit.groups)[:_ROWS]),
            *(("left out", f"{name}: {why}") for name, why in list(audit.left_out.items())[:_ROWS]),
            ("not explained", listed([f"{key} ({why})" for key, why in audit.failures.items()])),
            ("not searched, since the model hardly gives them their class", listed(audit.doubtful)),
        ]
    )


def _searched(audit: Audit, group: str) -> str:
    outside = f", {percent(audit.outside[group])} of saliency outside the object" if group in audit.outside else ""
    return f"{group}: {audit.groups[group]:,} images{outside}"
