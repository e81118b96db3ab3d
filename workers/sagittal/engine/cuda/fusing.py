"""Composition of masked images in one kernel, and the part of its gradient that sums over channels in another.

The functions are plain torch; torch.compile makes a Triton kernel of each. On CPUs `composition` multiplies matrices
instead, which is faster there.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

VARIANTS = 64
"""Maximum number of compiled versions of a function. Beyond the limit, torch silently runs it uncompiled."""

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


class Taps(NamedTuple):
    """Upsampling as sums: each pixel of an axis is a weighted sum of at most two cells of a flattened mask."""

    row_cells: Tensor
    """First cell of each row that a row of pixels sums: int64 of shape (2, height)."""
    row_weights: Tensor
    """Float32 of shape (2, height)."""
    column_cells: Tensor
    """Cells that a column of pixels sums, relative to the first of their row: int64 of shape (2, width)."""
    column_weights: Tensor
    """Float32 of shape (2, width)."""


def taps_of(rows: Tensor, columns: Tensor) -> Taps:
    """Returns the taps of matrices (height, mask height) and (width, mask width).

    Each row of a matrix has at most two values that are not zero.
    """
    row_weights, row_cells = _two_largest(rows)
    column_weights, column_cells = _two_largest(columns)
    return Taps(row_cells * columns.shape[1], row_weights, column_cells, column_weights)


def _two_largest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    weights, cells = matrix.topk(min(2, matrix.shape[1]), dim=1)
    if matrix.shape[1] == 1:  # the only cell, a second time without weight
        weights, cells = torch.cat([weights, torch.zeros_like(weights)], 1), cells.expand(-1, 2)
    return weights.T.contiguous(), cells.T.contiguous()


class Fused:
    """Compiled functions of composition."""

    def __init__(self, compile_function: Compile | None = None) -> None:
        """Compiles nothing yet: the first call of each kind compiles.

        Args:
            compile_function: Compiles a function; by default torch.compile for any sizes.
        """
        chosen = compile_function or compiled
        self._composed = chosen(_compose)
        self._composed_noisy = chosen(_compose_noisy)
        self.by_pixel = chosen(_by_pixel)

    def compose(self, out: Tensor, masks: Tensor, taps: Taps, baseline: Tensor, difference: Tensor) -> None:
        """Writes `baseline + mask * difference` into `out` (n, 3, height, width) for masks (n, h, w)."""
        self._composed(out, _flat(masks), baseline, difference, *taps)

    def compose_noisy(
        self,
        out: Tensor,
        masks: Tensor,
        taps: Taps,
        baseline: Tensor,
        difference: Tensor,
        *,
        noise: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Does the same and adds noise.

        Args:
            out: As for `compose`.
            masks: As for `compose`.
            taps: As for `compose`.
            baseline: As for `compose`.
            difference: As for `compose`.
            noise: A table, the offset of each row's window in it, int64 of shape (n,), and the factor, a scalar.
        """
        self._composed_noisy(out, _flat(masks), baseline, difference, *noise, *taps)


def _flat(masks: Tensor) -> Tensor:
    """Returns masks (n, h, w) as (n, cells), of at least four cells.

    Torch would compile again for one cell, and for a view of another tensor.
    """
    flat = masks.flatten(1)
    return flat.repeat(1, 4) if flat.shape[1] == 1 else flat.clone(memory_format=torch.contiguous_format)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns a function that torch compiles for all sizes: once for one row, and once for several, in each layout.

    Args:
        function: The function.
        options: Further options of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # Sizes that happen to be equal in the first call need not be equal in later ones.
    shapes: Any = importlib.import_module("torch.fx.experimental._config")
    shapes.use_duck_shape = False
    return torch.compile(function, dynamic=True, **options)


def _compose(out: Tensor, masks: Tensor, baseline: Tensor, difference: Tensor, *taps: Tensor) -> None:
    out.copy_(baseline + _upsampled(masks, Taps(*taps)).unsqueeze(1) * difference)


def _compose_noisy(
    out: Tensor,
    masks: Tensor,
    baseline: Tensor,
    difference: Tensor,
    table: Tensor,
    offsets: Tensor,
    scale: Tensor,
    *taps: Tensor,
) -> None:
    composed = baseline + _upsampled(masks, Taps(*taps)).unsqueeze(1) * difference
    places = torch.arange(difference.numel(), device=out.device).view(difference.shape)
    out.copy_(composed + scale * table[offsets.view(-1, 1, 1, 1) + places])


def _upsampled(masks: Tensor, taps: Taps) -> Tensor:
    """Returns masks (n, cells) as (n, height, width)."""
    (top, bottom), (left, right) = taps.row_cells.unsqueeze(-1), taps.column_cells
    of_top, of_bottom = taps.row_weights.unsqueeze(-1)
    of_left, of_right = taps.column_weights
    upper = of_left * masks[:, top + left] + of_right * masks[:, top + right]
    lower = of_left * masks[:, bottom + left] + of_right * masks[:, bottom + right]
    upsampled: Tensor = of_top * upper + of_bottom * lower
    return upsampled


def _by_pixel(of_inputs: Tensor, difference: Tensor) -> Tensor:
    """Returns the gradient with respect to upsampled masks (n, height, width), given that of the inputs."""
    of_pixels: Tensor = (of_inputs * difference).sum(1)
    return of_pixels
