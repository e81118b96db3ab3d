"""Goals of the explanations, and whether the figures meet them."""

from collections.abc import Sequence
from dataclasses import dataclass

from quality.statistics import Interval

ENOUGH = 40
"""Number of images on which a goal is judged."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal with its measured result."""

    text: str
    measured: str
    met: bool
    count: int
    """Number of images that it was measured on."""
    wanted: int = ENOUGH
    """Number of images that it must be judged on."""


def goals_table(goals: Sequence[Goal]) -> str:
    """Returns a Markdown table of goals; those measured on too few images are marked."""
    lines = ["| goal | measured | images | met |", "| --- | --- | --- | --- |"]
    for goal in goals:
        verdict = "yes" if goal.met else "**no**"
        fewer = f"{goal.count} (of {goal.wanted} required)" if goal.count < goal.wanted else str(goal.count)
        lines.append(f"| {goal.text} | {goal.measured} | {fewer} | {verdict} |")
    return "\n".join(lines) + "\n"


def signed(interval: Interval) -> str:
    """Formats a difference with its interval."""
    return f"{interval:+.3f}"
