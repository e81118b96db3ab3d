"""The batch size that suits a model, measured when it is loaded, and whether padding small batches is waste."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.engine.timing import Variant, computing_seconds, pass_seconds

CPU_SIZES = (16, 8, 32)
"""Batch sizes that are tried on a CPU, the most likely first: larger ones fall out of its caches, and in smaller ones a
step's own cost shows."""

GPU_SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Batch sizes that are tried on a GPU, as far as memory goes: the smallest that is fast wins, since cancellation and
turns wait for a batch."""

CLOSE = 0.96
"""Share of the best throughput that is as good."""

PATIENCE = 4.0
"""Time for trying batch sizes, in seconds; a size that would take longer is not tried."""

ROUNDS = 3
"""Most times that every size is tried: on a busy machine the fastest of a few says more than one."""

CHEAP = 0.5
"""Share of the time of a whole quantum, below which a single image is better run unpadded."""

MEMORY_SHARE = 0.5
"""Share of a GPU's memory that a batch may take, other models beside it."""


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
    """Returns the first batch size that is about as fast as any, and the throughput there.

    Args:
        variant: The model as it will run.
        image: An input (1, 3, height, width).
        sizes: Batch sizes to try, the one to be preferred first. The first is tried in any case.
        seconds: Measures a pass.
        patience: Time to spend, in seconds.
    """
    started = time.perf_counter()
    trials: dict[int, Trial] = {}
    seconds(variant, image.repeat(sizes[0], 1, 1, 1))
    for round_number in range(ROUNDS):
        for size in sizes if round_number == 0 else tuple(trials):
            needed = size * min((trial.whole for trial in trials.values()), default=0.0)
            if trials and time.perf_counter() - started + needed > patience:
                break
            try:
                trial = _try(variant, image, size, seconds)
            except torch.cuda.OutOfMemoryError:
                break
            trials[size] = trial.faster(trials.get(size))
            if round_number == 0 and _fills_memory(image.device):
                break
    if not trials:
        raise torch.cuda.OutOfMemoryError(f"the device has not enough memory for {sizes[0]} images of this size")
    least = min(trial.whole for trial in trials.values())
    size, trial = next((size, trial) for size, trial in trials.items() if trial.whole * CLOSE <= least)
    backward = 1 / max(trial.whole - trial.forward, 1e-9) if variant.gradient else 0.0
    return Throughput(batch_size=size, forward=1 / trial.forward, backward=backward)


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds for an image at a batch size."""

    forward: float
    whole: float
    """A forward pass, and one with gradient where the model gives one: what sizes are compared by."""

    def faster(self, other: "Trial | None") -> "Trial":
        """Returns the best of both."""
        return self if other is None else Trial(min(self.forward, other.forward), min(self.whole, other.whole))


def _try(variant: Variant, image: Tensor, size: int, seconds: Callable[[Variant, Tensor], float]) -> Trial:
    inputs = image.repeat(size, 1, 1, 1)
    forward_only = Variant(variant.module, channels_last=variant.channels_last, gradient=False)
    return Trial(seconds(forward_only, inputs) / size, seconds(variant, inputs) / size)


def batch_sizes(device: torch.device) -> Sequence[int]:
    """Returns the batch sizes to try on a device, multiples of every quantum."""
    return CPU_SIZES if device.type == "cpu" else GPU_SIZES


def runs_small_cheaply(
    variant: Variant, image: Tensor, quantum: int, *, seconds: Callable[[Variant, Tensor], float] = computing_seconds
) -> bool:
    """Whether one image alone takes much less time than a whole quantum, so that padding it would be waste."""
    if quantum == 1:
        return False
    alone, padded = image, image.repeat(quantum, 1, 1, 1)
    times = [(seconds(variant, alone), seconds(variant, padded)) for _ in range(2)]
    return min(one for one, _ in times) < CHEAP * min(whole for _, whole in times)


def _fills_memory(device: torch.device) -> bool:
    """Whether twice the batch would take more than its share of a GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return 2 * torch.cuda.max_memory_allocated(device) > MEMORY_SHARE * total
