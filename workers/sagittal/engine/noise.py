"""Gaussian noise from a table: a row's noise depends on its seed alone, and costs a copy instead of a generator.

Drawing a picture's worth of normal numbers costs a few percent of a small network's forward pass. Rows are windows of
one long table instead, at offsets that a hash of the seed gives. Windows that overlap are shifted against each other,
so at any one pixel the noise of two rows is as independent as the table's entries. The table is drawn on the CPU: rows
are the same on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

OFFSETS = 2**20
"""Number of different windows."""

_MASK = 2**64 - 1


class NoiseTable:
    """Standard normal noise by seed, on one device."""

    def __init__(self, device: torch.device) -> None:
        """Draws nothing yet."""
        self._device = device
        self._table = torch.empty(0)

    def rows(self, seeds: Sequence[int], shape: torch.Size) -> Tensor:
        """Returns noise of shape (seeds, *shape), float32; a seed and shape always give the same."""
        length = shape.numel()
        self._draw(length)
        offsets = torch.tensor([_hash(seed) % OFFSETS for seed in seeds], device=self._device)
        windows = self._table[: OFFSETS + length - 1].unfold(0, length, 1)
        return windows.index_select(0, offsets).view(len(seeds), *shape)

    def add(self, inputs: Tensor, seeds: Sequence[int], scale: float) -> None:
        """Adds noise to inputs (seeds, ...), `scale` times as large."""
        if self._device.type != "cpu":
            inputs.add_(self.rows(seeds, inputs.shape[1:]), alpha=scale)
            return
        # A call for each row costs less here than a copy of all noise.
        shape = inputs.shape[1:]
        self._draw(shape.numel())
        for row, seed in zip(inputs, seeds, strict=True):
            offset = _hash(seed) % OFFSETS
            row.add_(self._table[offset : offset + shape.numel()].view(shape), alpha=scale)

    def _draw(self, length: int) -> None:
        """Makes the table long enough. A longer table begins like a shorter one, so seeds keep their noise."""
        if len(self._table) >= OFFSETS + length:
            return
        with torch.inference_mode(False), torch.no_grad():
            blocks = -(-(OFFSETS + length) // OFFSETS)
            generator = torch.Generator()
            drawn = [torch.randn(OFFSETS, generator=generator.manual_seed(block)) for block in range(blocks)]
            self._table = torch.cat(drawn).to(self._device)


def _hash(seed: int) -> int:
    """Spreads neighbouring seeds over 64 bits (the finalizer of SplitMix64)."""
    value = (seed + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
