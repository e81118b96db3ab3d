"""Compiling a model: fused kernels everywhere, and CUDA graphs on CUDA, which ask for batches of few, fixed sizes.

It is tried where the operator asks for it, since it takes a minute or more for each model, and kept where it is faster.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

VARIANTS = 64
"""Most versions of a model that are compiled: one for each size of batch, with and without gradient. Past the limit,
torch would run the model uncompiled without a word."""


class CompiledModel(nn.Module):
    """A compiled model. Each call begins a new turn of the CUDA graphs, whose outputs the next turn overwrites."""

    def __init__(self, module: nn.Module, *, graphs: bool) -> None:
        """Compiles nothing yet: that is done at the first batch of each size."""
        super().__init__()
        self.plain = module
        self._graphs = graphs
        mode = "reduce-overhead" if graphs else "default"
        self._compiled = torch.compile(module, mode=mode, dynamic=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs a batch; the output is the caller's to keep."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        outputs: Tensor = self._compiled(inputs)
        return outputs.clone() if self._graphs else outputs


def compile_for(device: torch.device) -> Callable[[nn.Module], tuple[nn.Module, str]]:
    """Returns the step that compiles a model for a device."""

    def compile_model(module: nn.Module) -> tuple[nn.Module, str]:
        torch._dynamo.config.recompile_limit = VARIANTS
        graphs = device.type == "cuda"
        return CompiledModel(module, graphs=graphs), "fused kernels and CUDA graphs" if graphs else "fused kernels"

    return compile_model


def bucket_sizes(batch_size: int, stretched: float) -> tuple[int, ...]:
    """Returns the sizes to which batches are padded: powers of two, a full batch and a stretched one."""
    sizes = {batch_size, int(batch_size * stretched)}
    size = 1
    while size < batch_size:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def padded_size(rows: int, buckets: Iterable[int]) -> int:
    """Returns the smallest bucket that holds the rows; the rows themselves where none does."""
    return min((size for size in buckets if size >= rows), default=rows)
