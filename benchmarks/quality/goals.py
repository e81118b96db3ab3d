"""What the explanations are to reach, and whether the figures say that they do."""

from collections.abc import Sequence
from dataclasses import dataclass

from quality.statistics import Interval

ENOUGH = 40
"""Pictures on which a goal is judged."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal with what was measured of it."""

    text: str
    measured: str
    met: bool
    count: int
    """Pictures that it was measured on."""
    wanted: int = ENOUGH
    """Pictures that it is to be judged on."""


def goals_table(goals: Sequence[Goal]) -> str:
    """Returns a Markdown table of goals, those measured on too few pictures marked as such."""
    lines = ["| goal | measured | pictures | met |", "| --- | --- | --- | --- |"]
    for goal in goals:
        verdict = "yes" if goal.met else "**no**"
        fewer = f"{goal.count} (of {goal.wanted} wanted)" if goal.count < goal.wanted else str(goal.count)
        lines.append(f"| {goal.text} | {goal.measured} | {fewer} | {verdict} |")
    return "\n".join(lines) + "\n"


def signed(interval: Interval) -> str:
    """Formats a difference with its interval."""
    return f"{interval:+.3f}"
