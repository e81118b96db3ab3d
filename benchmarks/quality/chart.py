"""A line chart as SVG: quality against evaluations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 640, 360, 56
"""Pixels."""


Axis = Callable[[float], float]
"""From a value to a position in the chart."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points with intervals."""

    name: str
    colour: str
    points: Sequence[tuple[float, float, float, float]]
    """Evaluations, mean, low and high."""


def chart(lines: Sequence[Line], title: str) -> str:
    """Returns the chart; evaluations on a logarithmic axis."""
    every = [point for line in lines for point in line.points]
    left, right = math.log(min(each[0] for each in every) * 0.9), math.log(max(each[0] for each in every) * 1.1)
    bottom = math.floor(min(each[2] for each in every) * 20) / 20
    top = math.ceil(max(each[3] for each in every) * 20) / 20

    def x(evaluations: float) -> float:
        return MARGIN + (math.log(evaluations) - left) / (right - left) * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (value - bottom) / (top - bottom) * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>{title}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for step in range(round((top - bottom) / 0.05) + 1):
        value = bottom + step * 0.05
        parts.append(f'<path d="M{MARGIN} {y(value):.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts += [
        f'<text x="{x(evaluations):.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{evaluations:.0f}</text>'
        for evaluations in sorted({each[0] for each in every})
    ]
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">model evaluations (logarithmic)</text>')
    parts += [_drawn(line, place, x, y) for place, line in enumerate(lines)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(line: Line, place: int, x: Axis, y: Axis) -> str:
    upper = [f"{x(each[0]):.1f},{y(each[3]):.1f}" for each in line.points]
    lower = [f"{x(each[0]):.1f},{y(each[2]):.1f}" for each in reversed(line.points)]
    middle = " ".join(f"{x(each[0]):.1f},{y(each[1]):.1f}" for each in line.points)
    dots = "".join(f'<circle cx="{x(e[0]):.1f}" cy="{y(e[1]):.1f}" r="3" fill="{line.colour}"/>' for e in line.points)
    return (
        f'<polygon points="{" ".join([*upper, *lower])}" fill="{line.colour}" opacity="0.15"/>'
        f'<polyline points="{middle}" fill="none" stroke="{line.colour}" stroke-width="2"/>{dots}'
        f'<text x="{MARGIN + 8}" y="{MARGIN - 26 + 16 * place}" fill="{line.colour}">{line.name}</text>'
    )
