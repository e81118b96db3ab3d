"""Images of two classes, a red and a blue square on grey, and a classifier whose reasons are known.

The classifier may also read a mark, a checkerboard in a corner, as evidence for red.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.audit.evidence import Evidence, shrink_mask

SIZE, GRID = 32, 8
"""Sides of the images in pixels, and of their saliency in cells."""

RED, BLUE = 0, 1

MARK = np.zeros((SIZE, SIZE), bool)
MARK[24:, 24:] = True
"""The pixels of the mark: four cells in the lower right corner."""

_BOARD = np.where((np.arange(SIZE)[:, None] // 2 + np.arange(SIZE) // 2) % 2, 255, 0).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image with everything that is known about it."""

    key: str
    label: int
    pixels: NDArray[np.uint8]
    square: NDArray[np.bool_]
    marked: bool


def draw(count: int, *, marked: int, seed: int = 0) -> list[Image]:
    """Returns `count` images of each class; the first `marked` red ones have the mark."""
    generator = np.random.default_rng(seed)
    found = []
    for label in (RED, BLUE):
        for number in range(count):
            pixels = generator.integers(100, 156, (SIZE, SIZE, 1)).repeat(3, 2).astype(np.uint8)
            top, left = generator.integers(0, 14, 2)
            square = np.zeros((SIZE, SIZE), bool)
            square[top : top + 8, left : left + 8] = True
            pixels[square] = (220, 30, 30) if label == RED else (30, 30, 220)
            has_mark = label == RED and number < marked
            if has_mark:
                pixels[MARK] = _BOARD[MARK][:, None]
            found.append(Image(f"{('red', 'blue')[label]}/{number:03d}.png", label, pixels, square, has_mark))
    return found


def red_probability(pixels: NDArray[np.uint8], *, reads_mark: bool) -> float:
    """Returns the classifier's probability of red; blue has the rest."""
    red, _, blue = (pixels[..., channel].astype(float) for channel in range(3))
    squares = ((red - blue > 100).sum() - (blue - red > 100).sum()) / 64
    board = (np.where(MARK, (_BOARD / 127.5 - 1) * (pixels.mean(2) / 127.5 - 1), 0)).sum() / MARK.sum()
    logit = 3 * squares + (8 * max(board, 0) if reads_mark else 0)
    return float(1 / (1 + np.exp(-logit)))


def scorer(*, reads_mark: bool):
    """Returns the classifier as an audit asks it."""

    def score(edited: Sequence[tuple[NDArray[np.uint8], int]]) -> Sequence[float]:
        reds = [red_probability(pixels, reads_mark=reads_mark) for pixels, _ in edited]
        return [red if label == RED else 1 - red for red, (_, label) in zip(reds, edited, strict=True)]

    return score


def saliency(image: Image) -> NDArray[np.float32]:
    """Returns a heatmap that shows the square, and the mark if there is one."""
    return shrink_mask(image.square | (MARK & image.marked), GRID)


def evidence_of(images: Sequence[Image], *, reads_mark: bool, with_objects: bool = True) -> list[Evidence]:
    """Returns the images with their explanations."""
    ask = scorer(reads_mark=reads_mark)
    return [
        Evidence(
            key=each.key,
            label=each.label,
            group=("red", "blue")[each.label],
            score=ask([(each.pixels, each.label)])[0],
            top=each.label,
            saliency=saliency(each),
            picture=lambda each=each: each.pixels,
            read_inside=(lambda each=each: each.square) if with_objects else None,
        )
        for each in images
    ]
