"""Chooses at load how a model runs on CUDA. Each choice is checked, and left out with a reason if the check fails."""

import math
import time
from collections.abc import Callable

import structlog
import torch
from torch import Tensor

from sagittal.engine.composition import Composer, Part
from sagittal.engine.cuda.fusing import Fused
from sagittal.engine.cuda.graphs import Capture, Graphs
from sagittal.engine.cuda.precision import measure_drift, reduced_copy, reduced_type
from sagittal.engine.evaluator import TorchEvaluator
from sagittal.engine.optimise import TOLERANCE, CompiledModel, Step
from sagittal.engine.requests import Evaluate, Subject, Upsampling
from sagittal.engine.scoring import TOP, Mode, Slot
from sagittal.engine.timing import settle

REDUCED, FUSED, CAPTURED = "reduced-precision", "fused-composition", "cuda-graphs"
"""Names of the steps."""

LARGEST_DIFFERENCE = 1e-4
"""Largest difference that is rounding: of a composed input, whose values are about one, and of a gradient, relative to
the largest."""

GRAPHS_SPEEDUP = 0.95
"""Minimum speed-up factor at which captured passes are kept: they compute no more, so that a lower value is noise."""

ROUNDS = 5
"""Number of passes of which the fastest counts."""

log = structlog.get_logger(__name__)

Speedup = Callable[[Slot, Slot], float]
"""Returns the speed of the second slot's pass relative to the first's."""


def accelerate(evaluator: TorchEvaluator, probe: Tensor, *, full_precision: bool) -> list[Step]:
    """Changes how the evaluator runs its model on CUDA; returns the steps.

    Args:
        evaluator: The model's evaluator, as constructed.
        probe: At least two images of noise (n, 3, height, width) on the device.
        full_precision: Whether the model must run in full precision.
    """
    steps = [] if full_precision else [reduce_precision(evaluator, probe, reduced_type(probe.device))]
    return [*steps, fuse_composition(evaluator, probe), capture_passes(evaluator, probe)]


def reduce_precision(evaluator: TorchEvaluator, probe: Tensor, dtype: torch.dtype) -> Step:
    """Runs requests that are not exact in reduced precision, if that hardly changes the scores of the probe.

    Args:
        evaluator: The model's evaluator, which runs in full precision.
        probe: Inputs (n, 3, height, width) on the device.
        dtype: The reduced precision.
    """
    module = evaluator.module
    try:
        plain = module.plain if isinstance(module, CompiledModel) else module
        reduced = reduced_copy(plain, dtype)
        evaluator.autocast = dtype
        evaluator.reduced = CompiledModel(reduced) if isinstance(module, CompiledModel) else reduced
        drift = measure_drift(evaluator.score, probe, gradient=evaluator.supports_gradients)
        refusal, difference = drift.refusal, drift.probability
    except Exception as error:  # noqa: BLE001 - foreign code may refuse a precision in any way; it then runs in full
        refusal, difference = f"it fails in reduced precision: {_said(error)}", 0.0
    if refusal:
        evaluator.autocast = evaluator.reduced = None
        log.warning("reduced-precision-refused", reason=refusal, doing="running the model in full precision")
        return Step(REDUCED, False, refusal, difference)
    kept = f"{drift.same_class} of {drift.images} images keep their top class"
    return Step(REDUCED, True, f"the search runs in {_name(dtype)}, reported scores in float32; {kept}", difference)


def fuse_composition(evaluator: TorchEvaluator, probe: Tensor, fused: Fused | None = None) -> Step:
    """Composes inputs in one compiled kernel, if it can be compiled here and composes the same.

    Args:
        evaluator: The model's evaluator.
        probe: At least two images (n, 3, height, width) on the device.
        fused: The compiled functions; None for torch.compile's.
    """
    composer = evaluator.composer
    plain = Composer(composer.device, composer.layout)
    composer.fused = fused or Fused()
    try:
        difference = max(_composed_apart(plain, composer, request) for request in _requests(probe))
        refusal = "" if difference <= LARGEST_DIFFERENCE else f"it differs by {difference:.2g} from matrix products"
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, such as without a C compiler; products remain
        difference, refusal = 0.0, f"it cannot be compiled: {_said(error)}"
    if refusal:
        composer.fused = None
        log.warning("fused-composition-refused", reason=refusal, doing="composing by matrix products")
        return Step(FUSED, False, refusal)
    return Step(FUSED, True, f"one kernel composes inputs, within {difference:.1g} of matrix products")


def _requests(probe: Tensor) -> list[Evaluate]:
    """Returns requests of every kind that is compiled by itself: one row and several, with and without noise."""
    subject = Subject(probe[0], probe[1], None)
    generator = torch.Generator().manual_seed(0)
    return [
        Evaluate(subject=subject, masks=torch.rand(rows, 7, 7, generator=generator), noise=noise, upsampling=how)
        for rows in (1, 3)
        for noise in (0.0, 0.2)
        for how in Upsampling
    ]


@torch.no_grad()
def _composed_apart(plain: Composer, fused: Composer, request: Evaluate) -> float:
    """Returns the largest difference of composed inputs and of gradients, the latter relative to the largest."""
    rows = len(request.masks)
    image = request.subject.image
    outputs = []
    for composer in (plain, fused):
        # A part of a batch, as it will be: torch compiles again for a whole tensor.
        batch = torch.empty((rows + 1, *image.shape), device=composer.device, memory_format=composer.layout)
        inputs = batch[:rows]
        composed = composer.compose(Part(request, 0, rows), inputs)
        outputs.append((inputs, composed.gradient(inputs)))
    (inputs, gradient), (other, of_other) = outputs
    apart = (gradient - of_other).abs().max() / gradient.abs().max()
    return max(float((inputs - other).abs().max()), float(apart))


def capture_passes(
    evaluator: TorchEvaluator,
    probe: Tensor,
    *,
    begin: Callable[[torch.device], Capture] | None = None,
    speedup: Speedup | None = None,
) -> Step:
    """Replays captured passes instead of launching each kernel, if the model can be captured and that is no slower.

    Args:
        evaluator: The model's evaluator.
        probe: Inputs (n, 3, height, width) on the device.
        begin: Begins captures; None for CUDA's.
        speedup: Compares two slots; None to measure.
    """
    shape, size = probe.shape[1:], len(probe)
    graphs = Graphs(evaluator.score, shape, evaluator.device, evaluator.composer.layout, begin=begin)
    try:
        difference, factor = 0.0, math.inf
        for mode in modes_of(evaluator):
            new, captured = evaluator.slot(size, shape, mode), graphs.slot(size, mode)
            difference = max(difference, _passed_apart(new, captured, probe))
            factor = min(factor, (speedup or _measure_speedup)(new, captured))
    except Exception as error:  # noqa: BLE001 - a model that waits for the device, for example, cannot be captured
        return _not_captured(f"a pass cannot be captured: {_said(error)}")
    finally:
        graphs.clear()
    if not difference <= TOLERANCE:
        return _not_captured(f"replays change a probability by {difference:.2g}, more than {TOLERANCE:g}")
    if factor < GRAPHS_SPEEDUP:
        return _not_captured(f"left out: {factor:.2f}x as fast")
    evaluator.graphs = graphs
    return Step(CAPTURED, True, f"passes are captured for each size of batch; {factor:.2f}x as fast", difference)


def _not_captured(reason: str) -> Step:
    log.warning("cuda-graphs-refused", reason=reason, doing="launching each kernel")
    return Step(CAPTURED, False, reason)


def modes_of(evaluator: TorchEvaluator) -> list[Mode]:
    """Returns the modes in which a model is evaluated."""
    gradients = (False, True) if evaluator.supports_gradients else (False,)
    return [
        Mode(gradient=gradient, reduced=reduced)
        for gradient in gradients
        for reduced in ((False, True) if evaluator.autocast is not None else (False,))
    ]


def _passed_apart(new: Slot, captured: Slot, probe: Tensor) -> float:
    """Returns the largest difference of a probability between a replay and a pass of the same inputs."""
    probabilities = []
    for slot in (new, captured):
        slot.inputs.copy_(probe)
        slot.targets.fill_(TOP)
        probabilities.append(slot.run().probabilities.clone())
    return float((probabilities[0] - probabilities[1]).abs().max())


def _measure_speedup(new: Slot, captured: Slot) -> float:
    seconds = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for index, slot in enumerate((new, captured)):
            seconds[index] = min(seconds[index], slot_seconds(slot))
    return seconds[0] / seconds[1]


def slot_seconds(slot: Slot) -> float:
    """Returns the time of a pass in seconds, the device synchronised."""
    settle(slot.inputs.device)
    began = time.perf_counter()
    slot.run()
    settle(slot.inputs.device)
    return max(time.perf_counter() - began, 1e-9)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _said(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
