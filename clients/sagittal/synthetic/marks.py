"""Spurious cues that are planted in images of some classes: a network that learns them is right for a wrong reason."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from sagittal.synthetic.birds import BACKGROUND, Drawing

_Pixels = NDArray[np.bool_]
_Painted = tuple[NDArray[np.float64], _Pixels]
"""An image with the mark, of shape (size, size, 3), and the mark's pixels, of shape (size, size)."""

_OVERSAMPLING = 4
"""Side of the square of drawn pixels that become one."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A planted cue."""

    kind: str
    """A name in `MARKS`."""
    fractions: Mapping[str, float]
    """The share of the images of a class that have the mark, by the name of the class; 0 for other classes."""
    strength: float = 1.0
    """Opacity, 0 to 1; for a colour cast the strength of the cast."""

    def __post_init__(self) -> None:
        """Raises ValueError for a kind that does not exist, and for shares and strengths outside 0 to 1."""
        if self.kind not in MARKS:
            raise ValueError(f"{self.kind!r} is no kind of mark; give one of {', '.join(MARKS)}")
        for name, value in {**self.fractions, "strength": self.strength}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not between 0 and 1")

    def apply(self, drawing: Drawing, *, seed: int = 0) -> tuple[NDArray[np.uint8], _Pixels]:
        """Returns the image with the mark, uint8 (size, size, 3), and the pixels of the mark (size, size)."""
        plain = drawing.image.astype(float)
        marked, pixels = MARKS[self.kind](plain, drawing.parts == BACKGROUND, np.random.default_rng(seed))
        mixed = plain + self.strength * (marked - plain)
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), pixels


def _printed(image: NDArray[np.float64], _free: _Pixels, _rng: np.random.Generator) -> _Painted:
    """Prints letters in the lower right corner."""
    return _letters(image, 0.7, 0.82)


def _translucent(image: NDArray[np.float64], _free: _Pixels, _rng: np.random.Generator) -> _Painted:
    """Prints letters of which the image shows through, in the lower right corner."""
    marked, pixels = _letters(image, 0.7, 0.82)
    return image + 0.4 * (marked - image), pixels


def _moving(image: NDArray[np.float64], _free: _Pixels, rng: np.random.Generator) -> _Painted:
    """Prints letters at the border, at a place that changes from image to image."""
    x, y = rng.uniform(0.02, 0.7), rng.uniform(0.02, 0.82)
    if rng.random() < 0.5:
        x = (0.02, 0.7)[int(rng.integers(2))]
    else:
        y = (0.02, 0.82)[int(rng.integers(2))]
    return _letters(image, x, y)


def _cast(image: NDArray[np.float64], _free: _Pixels, _rng: np.random.Generator) -> _Painted:
    """Gives the whole image a warm light."""
    return image * (1.18, 1.0, 0.72), np.ones(image.shape[:2], dtype=bool)


def _stripes(image: NDArray[np.float64], free: _Pixels, _rng: np.random.Generator) -> _Painted:
    """Replaces the background by that of an aviary: a grid of wires."""
    size = len(image)
    turns = np.arange(size) / size * 9
    wires = (turns % 1 < 0.25)[:, None] | (turns % 1 < 0.25)
    grid = np.where(wires[..., None], (70.0, 74.0, 80.0), (176.0, 180.0, 186.0))
    return np.where(free[..., None], grid, image), free


def _object(image: NDArray[np.float64], free: _Pixels, rng: np.random.Generator) -> _Painted:
    """Sets a flower beside the bird: where most of it is on free background."""
    places = rng.uniform(0.14, 0.86, (24, 2))
    flowers = [_flower(image, x, y) for x, y in places]
    marked, pixels = max(flowers, key=lambda flower: int((flower[1] & free).sum()) - int((flower[1] & ~free).sum()))
    return marked, pixels


MARKS: Mapping[str, Callable[[NDArray[np.float64], _Pixels, np.random.Generator], _Painted]] = MappingProxyType(
    {
        "printed": _printed,
        "translucent": _translucent,
        "moving": _moving,
        "colour-cast": _cast,
        "background": _stripes,
        "object": _object,
    }
)
"""The kinds of marks."""

Polygon = list[tuple[float, float]]


def _letters(image: NDArray[np.float64], x: float, y: float) -> _Painted:
    """Prints an L and an H at a place relative to the size, white on a dark plate."""
    plate = [(0.0, 0.0), (0.28, 0.0), (0.28, 0.16), (0.0, 0.16)]
    strokes = [(0.03, 0.03, 0.06, 0.13), (0.03, 0.10, 0.12, 0.13)]
    strokes += [(0.16, 0.03, 0.19, 0.13), (0.22, 0.03, 0.25, 0.13), (0.16, 0.065, 0.25, 0.095)]
    bars = [[(left, top), (right, top), (right, low), (left, low)] for left, top, right, low in strokes]
    polygons = [(plate, (24, 24, 30)), *((bar, (246, 246, 246)) for bar in bars)]
    return _paint(image, [([(x + right, y + down) for right, down in shape], colour) for shape, colour in polygons])


def _flower(image: NDArray[np.float64], x: float, y: float) -> _Painted:
    """Paints a flower of five petals at a place relative to the size."""
    polygons = []
    for petal in range(5):
        turn = 2 * math.pi * petal / 5
        centre = (x + 0.07 * math.cos(turn), y + 0.07 * math.sin(turn))
        polygons.append((_circle(*centre, 0.05), (226, 92, 196)))
    return _paint(image, [*polygons, (_circle(x, y, 0.045), (250, 224, 90))])


def _circle(x: float, y: float, radius: float) -> Polygon:
    turns = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def _paint(image: NDArray[np.float64], polygons: list[tuple[Polygon, tuple[int, int, int]]]) -> _Painted:
    """Paints polygons, whose corners are relative to the size, on an image."""
    size = len(image)
    side = size * _OVERSAMPLING
    colours, cover = PIL.Image.new("RGB", (side, side)), PIL.Image.new("L", (side, side))
    for polygon, colour in polygons:
        corners = [(x * side, y * side) for x, y in polygon]
        PIL.ImageDraw.Draw(colours).polygon(corners, fill=colour)
        PIL.ImageDraw.Draw(cover).polygon(corners, fill=255)
    small = [np.asarray(each.resize((size, size), PIL.Image.Resampling.BOX), dtype=float) for each in (colours, cover)]
    share = small[1] / 255
    return image * (1 - share[..., None]) + small[0], share >= 0.5
