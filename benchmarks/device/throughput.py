"""Point 1: images per second of bare models, in every way to run them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from device.bench import Bench
from device.results import Results, Value
from sagittal.engine import TorchEvaluator
from sagittal.engine.cuda.graphs import Graphs
from sagittal.engine.cuda.precision import reduced_copy, reduced_type, require_full_precision
from sagittal.engine.scoring import TOP, Mode, Slot

POINT = "bare throughput"

WARM_UPS, MOST = 3, 30
"""Passes before each measurement, and the most in it."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a model."""

    name: str
    fast: bool = False
    """Channels last, and weights in reduced precision."""
    compiled: str = ""
    """Mode of torch.compile; empty for none."""
    captured: bool = False
    """Whether passes are captured by hand."""
    seconds: float = 4.0
    """Expected time for both modes."""

    @property
    def needs_card(self) -> bool:
        """Whether it cannot run on a CPU."""
        return self.captured or self.compiled == "reduce-overhead"


WAYS = (
    Way("eager"),
    Way("channels last, reduced precision", fast=True),
    Way("channels last, reduced precision, captured", fast=True, captured=True),
    Way(
        "compiled, channels last, reduced precision, captured", fast=True, compiled="default", captured=True, seconds=45
    ),
    Way("compiled, channels last, reduced precision", fast=True, compiled="default", seconds=20),
    Way(
        "compiled, channels last, reduced precision, reduce-overhead", fast=True, compiled="reduce-overhead", seconds=30
    ),
    Way("compiled", compiled="default", seconds=45),
)
"""Most valuable first. Those that compile the same share what is compiled on disk."""


def measurements(bench: Bench, *, slow: bool) -> Iterator[tuple[str, float, Callable[[], Value]]]:
    """Yields the key, the expected seconds and the work of each measurement.

    Args:
        bench: The device.
        slow: Whether to yield the ways that compile, and otherwise the others.
    """
    for name in bench.sizes.architectures:
        for way in WAYS:
            if bool(way.compiled) == slow and (bench.on_card or not way.needs_card):
                yield f"{name}: {way.name}", way.seconds, lambda name=name, way=way: measure(bench, name, way)


def measure(bench: Bench, name: str, way: Way) -> Value:
    """Returns the throughput of a model, forward and forward with backward, at its best batch size."""
    require_full_precision()
    evaluator = _evaluator(bench, bench.module(name), way)
    found: dict[str, float] = {}
    for gradient in (False, True):
        mode = Mode(gradient=gradient, reduced=way.fast)
        rates = {size: size / _seconds(bench, evaluator, way, size, mode) for size in bench.sizes.batches}
        best = max(rates, key=lambda size: rates[size])
        kind = "backward" if gradient else "forward"
        found |= {f"{kind}_images_per_second": rates[best], f"{kind}_batch": best}
    return found


def best(results: Results, name: str = "EfficientNet-Lite0") -> tuple[float, float] | None:
    """Returns the best bare images per second, forward and forward with backward; None if nothing was measured."""
    rows = [value for key, value in results.of(POINT).items() if key.startswith(f"{name}: ") and "error" not in value]
    if not rows:
        return None
    forward, backward = (
        max(float(row[f"{kind}_images_per_second"]) for row in rows) for kind in ("forward", "backward")
    )
    return forward, backward


def _evaluator(bench: Bench, module: nn.Module, way: Way) -> TorchEvaluator:
    dtype = None
    if way.fast:
        dtype = reduced_type(bench.device) if bench.on_card else torch.bfloat16
        module = reduced_copy(module.to(memory_format=torch.channels_last), dtype)
    if way.compiled:
        backend = {"backend": bench.sizes.compile_backend} if bench.sizes.compile_backend != "inductor" else {}
        mode = {} if backend or way.compiled == "default" else {"mode": way.compiled}
        module = _Compiled(torch.compile(module, dynamic=False, **backend, **mode), way.compiled)
    return TorchEvaluator(module=module, device=bench.device, channels_last=way.fast, autocast=dtype)


class _Compiled(nn.Module):
    """A compiled model; torch's own graphs need to know when a pass begins."""

    def __init__(self, compiled: Callable[[Tensor], Tensor], mode: str) -> None:
        super().__init__()
        self._compiled = compiled
        self._graphs = mode == "reduce-overhead"

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs a batch."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(inputs)


def _seconds(bench: Bench, evaluator: TorchEvaluator, way: Way, size: int, mode: Mode) -> float:
    """Returns the time of a pass."""
    shape = torch.Size((3, bench.sizes.side, bench.sizes.side))
    if way.captured:
        evaluator.graphs, evaluator.buckets = (
            Graphs(evaluator.score, shape, bench.device, evaluator.composer.layout),
            (size,),
        )
    slot = evaluator.slot(size, shape, mode)
    slot.inputs.normal_()
    slot.targets.fill_(TOP)
    seconds = pass_seconds(bench, slot, bench.sizes.seconds)
    evaluator.graphs = None
    return seconds


def pass_seconds(bench: Bench, slot: Slot, patience: float) -> float:
    """Returns the mean time of passes that follow each other, without waiting for the device between them."""
    for _ in range(WARM_UPS):
        slot.run()
    bench.settle()
    started, passes = time.perf_counter(), 0
    while passes < MOST and (passes == 0 or time.perf_counter() - started < patience):
        slot.run()
        passes += 1
    bench.settle()
    return (time.perf_counter() - started) / passes
