"""An explanation by concepts: the class because of x1 ... xn, and where each of them looks."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from sagittal.cli.drawing import style
from sagittal.cli.drawing.overlay import draw_overlay
from sagittal.cli.drawing.picture import Seen
from sagittal.client import ConceptContribution, ConceptPrediction, Explanation

#: Most characters of a concept's name above its bar.
MAX_NAME = 40


def concept_panels(explanation: Explanation, seen: Seen) -> Sequence[Callable[[Axes], None]]:
    """Returns what draws the contributions, and then each concept, the largest contribution first."""
    said = explanation.concept_prediction
    if said is None or not explanation.concepts:
        return ()
    ordered = sorted(explanation.concepts, key=lambda each: -abs(each.contribution))

    def bars(axes: Axes) -> None:
        _draw_contributions(axes, ordered, said)

    def looks(each: ConceptContribution) -> Callable[[Axes], None]:
        return lambda axes: _draw_concept(axes, each, seen)

    return [bars, *map(looks, ordered)]


def title_of(concept: ConceptContribution) -> str:
    """Returns how a concept is called: by its place, and its name where a person gave it one."""
    return f"x{concept.index + 1} {concept.name}".strip()


def _draw_contributions(axes: Axes, ordered: Sequence[ConceptContribution], said: ConceptPrediction) -> None:
    places = range(len(ordered), 0, -1)
    contributions = [each.contribution for each in ordered]
    colours = [style.GOOD if contribution >= 0 else style.BAD for contribution in contributions]
    axes.barh(list(places), contributions, color=colours, height=0.6)
    reach = max((abs(contribution) for contribution in contributions), default=0.0) or 1.0
    for place, each in zip(places, ordered, strict=True):
        away = 0.03 * reach * (1 if each.contribution >= 0 else -1)
        side = "left" if each.contribution >= 0 else "right"
        axes.text(
            each.contribution + away, place, f"{each.contribution:+.2f}", va="center", ha=side, fontsize=8,
            color=style.INK,
        )  # fmt: skip
        # within the frame: beside it the names would lie on the panel to the left
        name, across = each.name[:MAX_NAME], axes.get_yaxis_transform()
        axes.text(0.01, place + 0.34, name, transform=across, fontsize=8, color=style.FAINT)
    axes.axvline(0, color=style.FAINT, linewidth=0.8)
    axes.set_yticks(list(places), [f"x{each.index + 1}" for each in ordered])
    low, high = min(0.0, *contributions), max(0.0, *contributions)
    axes.set_xlim(low - (0.3 if low < 0 else 0.05) * reach, high + (0.3 if high > 0 else 0.05) * reach)
    axes.tick_params(labelsize=8, colors=style.INK, length=0)
    axes.set_box_aspect(1)
    axes.set_title(f"Because of x1 ... x{len(ordered)}", fontsize=11, color=style.INK, loc="left", pad=6, weight="bold")
    note = f"add up to {said.predicted:+.2f}; the model's own output is {said.output:+.2f}"
    axes.set_xlabel(note, fontsize=9, color=style.FAINT, loc="left", labelpad=5)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(style.RULE)


def _draw_concept(axes: Axes, concept: ConceptContribution, seen: Seen) -> None:
    note = f"contribution {concept.contribution:+.2f}, value {concept.value:+.2f}"
    if concept.heatmap is None or not concept.heatmap.any():
        style.show(axes, seen.picture, title_of(concept), f"{note}; looks nowhere in particular")
        return
    style.show(axes, draw_overlay(concept.heatmap, seen), title_of(concept), note)
