"""What is measured of a model when it is loaded: the batch that suits it, and how batches must be cut."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.engine.timing import Variant, pass_seconds

CPU_SIZES = (8, 16, 32)
"""Batch sizes that are tried on a CPU: larger ones fall out of its caches, in smaller ones a step's own cost shows."""

GPU_SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Batch sizes that are tried on a GPU, as far as memory goes."""

CLOSE = 0.99
"""Share of the best throughput that is as good: the smaller batch wins, since cancellation and turns wait for it."""

PATIENCE = 2.0
"""Time for trying batch sizes, in seconds; a size that would take longer is not tried."""

MEMORY_SHARE = 0.5
"""Share of a GPU's memory that a batch may take, other models beside it."""

QUANTA = (1, 2, 4)
"""Multiples of which batches may have to be."""

QUANTUM_ROWS = 8
"""Rows on which they are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images a second at the batch size that was chosen."""

    batch_size: int
    forward: float
    backward: float
    """With gradient; 0 where the model gives none."""


def find_throughput(
    variant: Variant,
    image: Tensor,
    sizes: Sequence[int],
    *,
    seconds: Callable[[Variant, Tensor], float] = pass_seconds,
    patience: float = PATIENCE,
) -> Throughput:
    """Returns the smallest batch size that is about as fast as any, and the throughput there.

    Args:
        variant: The model as it will run.
        image: An input (1, 3, height, width).
        sizes: Batch sizes to try, ascending. The first is tried in any case.
        seconds: Measures a pass.
        patience: Time to spend, in seconds.
    """
    forward_only = Variant(variant.module, channels_last=variant.channels_last, gradient=False)
    tried: list[Throughput] = []
    started = time.perf_counter()
    for size in sizes:
        if tried and time.perf_counter() - started + size * _cost(tried[-1]) > patience:
            break
        inputs = image.repeat(size, 1, 1, 1)
        try:
            if not tried:
                seconds(variant, inputs)
            forward, whole = seconds(forward_only, inputs), seconds(variant, inputs)
        except torch.cuda.OutOfMemoryError:
            break
        backward = size / max(whole - forward, 1e-9) if variant.gradient else 0.0
        tried.append(Throughput(batch_size=size, forward=size / forward, backward=backward))
        if _fills_memory(image.device):
            break
    if not tried:
        raise torch.cuda.OutOfMemoryError(f"the device has not enough memory for {sizes[0]} images of this size")
    least = min(_cost(one) for one in tried)
    return next(one for one in tried if _cost(one) * CLOSE <= least)


def batch_sizes(device: torch.device, quantum: int) -> Sequence[int]:
    """Returns the batch sizes to try on a device."""
    sizes = CPU_SIZES if device.type == "cpu" else GPU_SIZES
    return [size for size in sizes if size % quantum == 0]


def find_quantum(variant: Variant, probe: Tensor) -> int:
    """Returns the smallest quantum at which rows are the same in any batch, to the last bit; 1 where there is none.

    Kernels cut their work by the size of the batch and sum in another order for some sizes: rows are compared, with and
    without gradient, between one batch and unequal pieces of it.
    """
    rows = probe.repeat(-(-QUANTUM_ROWS // len(probe)), 1, 1, 1)[:QUANTUM_ROWS]
    rows = rows + torch.linspace(0, 1, len(rows), device=rows.device).view(-1, 1, 1, 1)
    whole = _results(variant, rows)
    for quantum in QUANTA:
        if _same_in_pieces(variant, rows, whole, quantum):
            return quantum
    return 1


def _same_in_pieces(variant: Variant, rows: Tensor, whole: Sequence[Tensor], quantum: int) -> bool:
    start = 0
    for size in pieces_of(quantum, len(rows)):
        piece = _results(variant, rows[start : start + size])
        if not all(torch.equal(part, all_[start : start + size]) for part, all_ in zip(piece, whole, strict=True)):
            return False
        start += size
    return True


def pieces_of(quantum: int, rows: int) -> Sequence[int]:
    """Returns unequal multiples of the quantum that sum to `rows`; equal ones where two are all that fit."""
    sizes, left = [], rows
    size = quantum
    while left - size >= size + quantum:
        sizes.append(size)
        left -= size
        size += quantum
    return [*sizes, left] if sizes else [quantum] * (rows // quantum)


def _results(variant: Variant, rows: Tensor) -> Sequence[Tensor]:
    without = variant.forward(rows)
    return (without, *variant.backward(rows)) if variant.gradient else (without,)


def _cost(throughput: Throughput) -> float:
    """Returns seconds for an image without and one with gradient."""
    return 1 / throughput.forward + (1 / throughput.backward if throughput.backward else 0.0)


def _fills_memory(device: torch.device) -> bool:
    """Whether twice the batch would take more than its share of a GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return 2 * torch.cuda.max_memory_allocated(device) > MEMORY_SHARE * total
