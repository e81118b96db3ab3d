"""Captured passes: on CUDA, a graph replays all kernels of a pass at once, in memory that it keeps.

Small networks are limited by the launches of their kernels, not by the kernels. A graph is captured for each size of
batch, precision, and with and without gradient, when it is first needed. All share one pool of memory, because they run
one after another and their results are read before the next begins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.engine.scoring import TOP, Mode, Pass, Passed

WARM_UPS = 3
"""Passes before a capture: they choose kernels, and compile what is compiled."""

Capture = Callable[[Callable[[], Passed]], tuple[Passed, Callable[[], object]]]
"""Captures work; returns its results, whose memory each replay overwrites, and the replay."""


@dataclass(frozen=True, slots=True, eq=False)
class CapturedSlot:
    """Memory that a graph reads its inputs from."""

    inputs: Tensor
    targets: Tensor
    passed: Passed
    replay: Callable[[], object]

    def run(self) -> Passed:
        """Replays the graph; its results are valid until the next pass."""
        self.replay()
        return self.passed


class Graphs:
    """The captured passes of one model on one device, for images of one shape."""

    def __init__(
        self,
        score: Pass,
        shape: torch.Size,
        device: torch.device,
        layout: torch.memory_format,
        *,
        begin: Callable[[torch.device], Capture] | None = None,
    ) -> None:
        """Captures nothing yet.

        Args:
            score: The pass.
            shape: Shape (3, height, width) of the images.
            device: Device of the model.
            layout: Memory layout of the inputs that the model needs.
            begin: Begins captures in a new pool of memory; by default CUDA's.
        """
        self._score = score
        self.shape = shape
        """Shape (3, height, width) of the images."""
        self._device = device
        self._layout = layout
        self._begin = begin or CudaCapture
        self._capture = self._begin(device)
        self._slots: dict[tuple[int, Mode], CapturedSlot] = {}
        self.bytes = 0
        """Memory that the graphs keep, in bytes."""

    def slot(self, size: int, mode: Mode) -> CapturedSlot:
        """Returns the captured pass of batches of a size; it is captured now if it is the first of its kind."""
        key = (size, mode)
        if key not in self._slots:
            self._slots[key] = self._captured(size, mode)
        return self._slots[key]

    def clear(self) -> None:
        """Frees all graphs and their memory."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a graph may still run
        self._slots.clear()
        self._capture, self.bytes = self._begin(self._device), 0

    def __len__(self) -> int:
        return len(self._slots)

    def _captured(self, size: int, mode: Mode) -> CapturedSlot:
        before = _reserved_bytes(self._device)
        inputs = torch.zeros((size, *self.shape), device=self._device).contiguous(memory_format=self._layout)
        targets = torch.full((size,), TOP, device=self._device)
        passed, replay = self._capture(lambda: self._score(inputs, targets, mode))
        self.bytes += max(0, _reserved_bytes(self._device) - before)
        return CapturedSlot(inputs, targets, passed, replay)


def _reserved_bytes(device: torch.device) -> int:
    """Returns the memory that this process keeps of a CUDA device, without what it could return."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


class CudaCapture:
    """Captures CUDA graphs into one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Passed]) -> tuple[Passed, Callable[[], object]]:
        """Captures work, after it has run a few times on the stream of the capture."""
        caller, stream = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        caller.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy images and load models meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            passed = work()
        return passed, graph.replay
