"""An explanation as HTML for notebooks: image, overlay, curves, sets with their certificates, and warnings.

All text from a service or a model is escaped. Images are embedded, so that a stored notebook shows them.
"""

import base64
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from html import escape as escape_markup

import numpy as np
import PIL.Image

from sagittal.client.errors import SagittalError
from sagittal.client.events import ConceptContribution, Curve, SufficientSet
from sagittal.client.explanation import Explanation
from sagittal.imaging.fitting import shrink
from sagittal.imaging.overlays import heatmap, to_image

#: Longer side of an image, and of a set's image, in pixels.
_SIDE, _SMALL = 240, 150

#: Maximum number of sufficient sets and concepts shown; the rest are counted.
_MAX_SETS, _MAX_CONCEPTS = 6, 8

#: Categories of characters that control a display: control characters, surrogates, and separators of lines. Classes of
#: marks that change the direction of the text after them.
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})

_INK, _FAINT, _RULE, _WARN = "#1f2328", "#6e7781", "#d0d7de", "#9a6700"
#: Colour of each kind of curve.
CURVE_COLOURS = {"insertion": "#1a7f37", "deletion": "#cf222e"}

_BOX = (
    f"font-family:system-ui,sans-serif;font-size:13px;color:{_INK};background:#fff;border:1px solid {_RULE};"
    "border-radius:6px;padding:10px 14px;max-width:900px"
)
_ROW = "display:flex;flex-wrap:wrap;gap:14px;margin-top:8px;align-items:flex-start"


def explanation_html(explanation: Explanation) -> str:
    """Returns an explanation as a fragment of HTML."""
    parts = [_heading(explanation), *_rows(explanation), *_warnings(explanation)]
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """Returns a table; every cell is escaped."""
    cell = f"padding:3px 10px;text-align:left;border-bottom:1px solid {_RULE}"
    head = "".join(f'<th style="{cell}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{escape(cell_text(value))}</td>' for value in row) + "</tr>"
        for row in rows
    )
    caption = f'<div style="color:{_FAINT}">{escape(note)}</div>' if note else ""
    table = f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="font-family:system-ui,sans-serif;font-size:13px">{table}{caption}</div>'


def escape(text: str) -> str:
    r"""Returns text for HTML: markup is escaped, and characters that control a display are shown, such as `\\x1b`."""
    return escape_markup("".join(map(_visible, text)))


def _visible(character: str) -> str:
    controls = unicodedata.category(character) in _CONTROLS or unicodedata.bidirectional(character) in _DIRECTIONS
    if not controls or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()


def percent(share: float) -> str:
    """Returns a probability as a percentage with one decimal."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"


def cell_text(value: object) -> str:
    """Returns a value as a table shows it."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:.4g}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def _heading(explanation: Explanation) -> str:
    target, progress = explanation.target, explanation.progress
    title = explanation.state
    if target is not None:
        title = f"{target.label or f'class {target.index}'} {percent(target.score)}"
    model = f"{explanation.model}@{explanation.model_version}".rstrip("@") if explanation.model else ""
    parts = [model, explanation.method, f"{explanation.evaluations:,} evaluations"]
    if explanation.seconds is not None:
        parts.append(f"{explanation.seconds:.1f} s")
    if explanation.seed is not None:
        parts.append(f"seed {explanation.seed}")
    if progress is not None and explanation.completed is None and explanation.error is None:
        parts.append(f"{progress.phase} {progress.fraction:.0%}")
    if explanation.state != "completed":
        parts.append(explanation.state)
    line = " · ".join(filter(None, parts))
    head = f'<div style="font-size:18px;font-weight:600">{escape(title)}</div>'
    return f'{head}<div style="color:{_FAINT}">{escape(line)}</div>'


def _rows(explanation: Explanation) -> Iterator[str]:
    yield _row(_pictures(explanation))
    sets = sorted(explanation.sufficient_sets, key=lambda each: (not each.diverse, len(each.patches.patches)))
    yield _row(_set(explanation, each) for each in sets[:_MAX_SETS])
    if len(sets) > _MAX_SETS:
        yield f'<div style="color:{_FAINT}">and {len(sets) - _MAX_SETS} more sufficient sets</div>'
    if explanation.graph is not None:
        graph = explanation.graph
        text = f"attention graph: {len(graph.nodes)} nodes, {len(graph.edges)} edges, {len(graph.roots)} roots"
        yield f'<div style="margin-top:8px">{text}</div>'
    concepts = sorted(explanation.concepts, key=lambda each: -abs(each.contribution))
    yield _row(_concept(explanation, each) for each in concepts[:_MAX_CONCEPTS])
    if explanation.stability is not None:
        yield f'<div style="color:{_FAINT}">stability: {escape(explanation.stability.text)}</div>'
    said = explanation.concept_prediction
    if said is not None:
        text = f"the concepts add up to {said.predicted:+.3g}; the model's own output is {said.output:+.3g}"
        yield f'<div style="color:{_FAINT}">{text}</div>'


def _row(cells: Iterable[str]) -> str:
    text = "".join(cells)
    return f'<div style="{_ROW}">{text}</div>' if text else ""


def _pictures(explanation: Explanation) -> Iterator[str]:
    image = explanation.image
    if image is not None:
        yield _figure(PIL.Image.fromarray(shrink(image.pixels, _SIDE)), "image")
    for number, mask in enumerate(explanation.masks[:3]):
        name = "overlay" if len(explanation.masks) == 1 else f"overlay {number + 1}"
        if image is not None:
            yield _figure(explanation.overlay(number, longest=_SIDE), name)
        else:
            shown = to_image(heatmap(mask.saliency, mask.signed)).resize((_SIDE, _SIDE), PIL.Image.Resampling.NEAREST)
            yield _figure(shown, "saliency, 0 to 1" if not mask.signed else "saliency, -1 to 1")
    if explanation.curves:
        yield _curves([curve for curve in explanation.curves if curve.mask_index == 0])


def _set(explanation: Explanation, each: SufficientSet) -> str:
    count = len(each.patches.patches)
    lines = [f"{count} patch{'es' if count != 1 else ''}: {percent(each.score)} alone"]
    if each.causal is not None:
        lines.append(f"{percent(each.causal.without)} without")
    certificate = each.certificate
    lines.append(f"{certificate.level}, {certificate.checked:,} sets checked")
    if certificate.robust is not None:
        lines += certificate.robust.text.split("; ")
    if explanation.image is not None:
        return _figure(explanation.overlay(each.patches, longest=_SMALL), *lines)
    grid = np.zeros((each.patches.grid, each.patches.grid), np.float32)
    grid.flat[list(each.patches.patches)] = 1
    shown = to_image(heatmap(grid)).resize((_SMALL, _SMALL), PIL.Image.Resampling.NEAREST)
    return _figure(shown, *lines)


def _concept(explanation: Explanation, each: ConceptContribution) -> str:
    lines = [
        f"x{each.index + 1} {each.name}".strip(),
        f"contribution {each.contribution:+.3g}, value {each.value:+.3g}",
    ]
    if explanation.image is not None and each.heatmap is not None:
        return _figure(explanation.overlay(each.heatmap, longest=_SMALL), *lines)
    return _caption(lines)


def _figure(image: PIL.Image.Image, *lines: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<div><img alt="{escape(lines[0])}" {size} src="data:image/jpeg;base64,{data}">{_caption(lines)}</div>'


def _caption(lines: Sequence[str]) -> str:
    text = "<br>".join(map(escape, lines))
    return f'<div style="color:{_FAINT};font-size:12px">{text}</div>'


def _curves(curves: Sequence[Curve]) -> str:
    names = "<br>".join(map(_curve_name, curves))
    return f'<div>{curves_svg(curves)}<div style="font-size:12px">{names}</div></div>'


def curves_svg(curves: Sequence[Curve], width: int = 260, height: int = 200) -> str:
    """Returns curves as an SVG: the share inserted or deleted from left to right, the probability upwards."""
    lines = [(curve.fractions.tolist(), curve.scores.tolist(), CURVE_COLOURS.get(curve.kind, _INK)) for curve in curves]
    return shares_svg(lines, " and ".join(curve.kind for curve in curves), width, height)


def shares_svg(
    lines: Iterable[tuple[Sequence[float], Sequence[float], str]], title: str, width: int = 260, height: int = 200
) -> str:
    """Returns lines of shares, 0 to 1 from left to right and upwards, each with its colour, as an SVG."""
    left, bottom = 34, 22
    across, up = width - left - 18, height - bottom - 8
    drawn = [
        f'<rect x="{left}" y="8" width="{across}" height="{up}" fill="none" stroke="{_RULE}"/>',
        *_ticks(left, across, up),
    ]
    for shares, values, colour in lines:
        places = zip(shares, values, strict=True)
        points = " ".join(f"{left + share * across:.1f},{8 + up * (1 - value):.1f}" for share, value in places)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _curve_name(curve: Curve) -> str:
    text = f"{curve.kind} {curve.auc:.3f}, relative {curve.auc_normalized:.2f}"
    return f'<span style="color:{CURVE_COLOURS.get(curve.kind, _INK)}">{escape(text)}</span>'


def _ticks(left: int, across: int, up: int) -> Iterator[str]:
    style = f'font-size="10" fill="{_FAINT}"'
    for share in (0.0, 0.5, 1.0):
        yield f'<text x="{left - 4}" y="{8 + up * (1 - share) + 3:.0f}" {style} text-anchor="end">{share:g}</text>'
        yield f'<text x="{left + share * across:.0f}" y="{8 + up + 13}" {style} text-anchor="middle">{share:.0%}</text>'


def _warnings(explanation: Explanation) -> Iterator[str]:
    notes = [f"{each.message} ({each.reason})" for each in explanation.warnings]
    if explanation.completed is not None and explanation.completed.truncated:
        notes.append(f"Ended early by its budget of {explanation.completed.truncated_by}: the best result so far.")
    if isinstance(explanation.error, SagittalError):
        notes.append(f"{explanation.state}: {explanation.error}")
    for note in notes:
        yield f'<div style="color:{_WARN};margin-top:6px">⚠ {escape(note)}</div>'
