"""A summary of a whole explanation in one figure."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sagittal.client.drawing import canvas
from sagittal.client.drawing.concepts import concept_panels
from sagittal.client.drawing.salient_part import SalientPart, salient_part
from sagittal.client.events import Curve, Mask, SufficientSet
from sagittal.client.explanation import Explanation
from sagittal.client.html import percent
from sagittal.imaging.masks import upsample
from sagittal.imaging.view import View

#: Maximum number of sufficient sets in the summary; each has an image beside it.
MAX_SETS = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One square of the summary."""

    draw: Callable[[Axes], None]


def draw_summary(explanation: Explanation, seen: View) -> Figure:
    """Returns the summary: the image, then the content of the explanation."""
    panels = [_photograph(seen), *_mask_panels(explanation, seen), *_set_panels(explanation, seen)]
    panels += map(Panel, concept_panels(explanation, seen))
    if explanation.curves:
        panels.append(_curves(explanation, seen))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    notes = _notes(explanation, columns)
    top, bottom, side = 1.05, 0.35 + 0.22 * sum(note.count("\n") + 1 for note in notes), 4.0
    width, height = columns * side + 0.5, rows * (side + 0.35) + top + bottom
    fig = canvas.figure(width, height)
    grid = fig.add_gridspec(
        rows, columns, left=0.3 / width, right=1 - 0.45 / width, top=1 - top / height, bottom=(bottom + 0.3) / height,
        wspace=0.17, hspace=0.22,
    )  # fmt: skip
    for number, panel in enumerate(panels):
        panel.draw(fig.add_subplot(grid[divmod(number, columns)]))
    _heading(fig, explanation, width, height)
    _footing(fig, notes, width, height)
    return fig


def _photograph(seen: View) -> Panel:
    return Panel(
        lambda axes: canvas.show(axes, seen.picture, "What the model saw", f"{seen.size} x {seen.size} pixels")
    )


def _mask_panels(explanation: Explanation, seen: View) -> Sequence[Panel]:
    if not explanation.masks:
        return ()
    mask = explanation.masks[0]
    return (
        Panel(lambda axes: _heatmap(axes, mask)),
        Panel(lambda axes: canvas.show(axes, seen.painted(mask.saliency), "Overlay", "saliency over the image")),
        *_part_panels(explanation, mask, seen),
    )


def _part_panels(explanation: Explanation, mask: Mask, seen: View) -> Sequence[Panel]:
    """Returns the panels of the salient part alone and of the rest: from the curves, or else from the mask alone."""
    part = _part(explanation, seen.size)
    if part is None:
        keep = np.clip(upsample(mask.saliency, seen.size), 0, 1)
        share, alone, without = float(keep.mean()), "", ""
    else:
        keep, share = part.mask, part.share
        alone, without = f": {percent(part.alone)}", f": {percent(part.without)}"
    rest = f"{share:.0%} of the area on {_background(explanation, seen)}"
    hidden = f"these {share:.0%} replaced by {_background(explanation, seen)}"
    return (
        Panel(lambda axes: canvas.show(axes, seen.keep(keep), f"Only this part{alone}", rest)),
        Panel(lambda axes: canvas.show(axes, seen.keep(1 - keep), f"Without it{without}", hidden)),
    )


def _part(explanation: Explanation, size: int) -> SalientPart | None:
    if not explanation.masks:
        return None
    mask = explanation.masks[0]
    return salient_part(mask.saliency, [curve for curve in explanation.curves if curve.mask_index == mask.index], size)


def _background(explanation: Explanation, seen: View) -> str:
    kind = (explanation.prediction.baseline if explanation.prediction else "") or "the mean colour"
    if seen.exact:
        return kind
    return "other noise than the job's" if kind == "noise" else "the mean colour, not the given image"


def _heatmap(axes: Axes, mask: Mask) -> None:
    """Draws a mask on the fixed scale; a nearly empty mask also gets a small drawing on a scale of its own."""
    image = canvas.heat(axes, mask.saliency, mask.signed)
    size = mask.saliency.shape[0]
    peak = float(np.abs(mask.saliency).max())
    canvas.frame(axes, "Saliency", f"{size} x {size} cells, peak {peak:.2g}, fixed scale")
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.035, 1.0)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=canvas.FAINT, length=2)
    canvas.show_faint(axes, mask.saliency, mask.signed)


def _set_panels(explanation: Explanation, seen: View) -> Sequence[Panel]:
    """Returns a panel for each set: diverse sets first, then small sets before large ones."""
    ordered = sorted(explanation.sufficient_sets, key=lambda each: (not each.diverse, len(each.patches.patches)))

    def panel(number: int) -> Panel:
        each = ordered[number]
        count = len(each.patches.patches)
        title = f"Sufficient set {number + 1}: {count} patch{'es' if count != 1 else ''}"
        without = f", {percent(each.causal.without)} without it" if each.causal else ""
        note = f"{percent(each.score)} alone{without} · {each.certificate.level}"
        if each.certificate.robust is not None:
            note = f"{note}\n{textwrap.fill(each.certificate.robust.text, 60)}"
        return Panel(lambda axes: _draw_set(axes, each, seen, title, note))

    return [panel(number) for number in range(min(MAX_SETS, len(ordered)))]


def _draw_set(axes: Axes, each: SufficientSet, seen: View, title: str, note: str) -> None:
    patches, grid = each.patches.patches, each.patches.grid
    canvas.show(axes, seen.only(patches, grid), title, note)
    canvas.outline(axes, patches, grid, (0, seen.size, seen.size, 0))


def _curves(explanation: Explanation, seen: View) -> Panel:
    curves = [curve for curve in explanation.curves if curve.mask_index == 0]
    part = _part(explanation, seen.size)
    return Panel(lambda axes: _draw_curves(axes, curves, part))


_CURVE_LOOKS: Mapping[str, tuple[str, str]] = {"insertion": (canvas.GOOD, "↑"), "deletion": (canvas.BAD, "↓")}


def _draw_curves(axes: Axes, curves: Sequence[Curve], part: SalientPart | None) -> None:
    for curve in curves:
        colour, arrow = _CURVE_LOOKS.get(curve.kind, (canvas.INK, ""))
        label = f"{curve.kind} {arrow}  {curve.auc:.3f}, relative {curve.auc_normalized:.2f}"
        axes.plot(curve.fractions, curve.scores, color=colour, linewidth=2, label=label)
        axes.fill_between(curve.fractions, curve.scores, color=colour, alpha=0.08, linewidth=0)
    if part is not None:
        axes.axvline(part.share, color=canvas.FAINT, linewidth=1, linestyle=":", label="the part that is shown")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_box_aspect(1)
    axes.set_title(
        "Is it right? Insertion and deletion", fontsize=11, color=canvas.INK, loc="left", pad=6, weight="bold"
    )
    axes.set_xlabel("share of the image inserted or deleted", fontsize=9, color=canvas.FAINT)
    axes.set_ylabel("probability of the class", fontsize=9, color=canvas.FAINT, labelpad=2)
    axes.tick_params(labelsize=8, colors=canvas.FAINT, length=2)
    axes.grid(color=canvas.RULE, linewidth=0.5, alpha=0.7)
    axes.legend(fontsize=9, frameon=True, framealpha=0.9, edgecolor=canvas.RULE, loc="best", labelcolor=canvas.INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(canvas.RULE)


def _heading(fig: Figure, explanation: Explanation, width: float, height: float) -> None:
    left, first, second = 0.3 / width, 1 - 0.38 / height, 1 - 0.66 / height
    target = explanation.target
    if target is not None:
        name = target.label or f"class {target.index}"
        fig.text(
            left,
            first,
            f"{name}  {percent(target.score)}",
            fontsize=18,
            color=canvas.INK,
            weight="bold",
            va="center",
        )
    parts = [f"{explanation.model} {explanation.model_version}".strip(), explanation.method]
    if explanation.completed:
        seconds = explanation.completed.run_seconds
        parts += [f"{explanation.evaluations:,} evaluations", f"{seconds:.1f} s", f"seed {explanation.completed.seed}"]
    fig.text(left, second, "  ·  ".join(filter(None, parts)), fontsize=10.5, color=canvas.FAINT, va="center")


def _notes(explanation: Explanation, columns: int) -> Sequence[str]:
    width = 55 * columns
    notes = [] if explanation.stability is None else [f"Stability: {explanation.stability.text}."]
    notes += [f"⚠ {each.message} ({each.reason})" for each in explanation.warnings]
    if explanation.completed and explanation.completed.truncated:
        notes.append(f"⚠ Ended early by its budget of {explanation.completed.truncated_by}: the best result so far.")
    return [textwrap.fill(note, width) for note in notes]


def _footing(fig: Figure, notes: Sequence[str], width: float, height: float) -> None:
    if notes:
        fig.text(
            0.3 / width, 0.18 / height, "\n".join(notes), fontsize=9.5, color=canvas.WARN, va="bottom", linespacing=1.4
        )
