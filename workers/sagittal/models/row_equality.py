"""Row equality: whether a row's result depends on its batch, measured on this machine at load.

Libraries choose kernels by the processor, its settings and the batch size, and kernels sum in different orders. Nothing
is therefore assumed: rows in every batch size that the engine runs are compared with the same rows alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagittal.engine.composition import Part
from sagittal.engine.evaluator import BlackBox, TorchEvaluator
from sagittal.engine.optimise import Step
from sagittal.engine.requests import Evaluate, Subject
from sagittal.engine.task import STRETCHED, join
from sagittal.models.measuring import Throughput

EQUAL_ROWS = "equal-rows"
"""Name of the step that reports the result."""

QUANTA = (1, 2, 4, 8)
"""Multiples of the batch size at which rows may be equal, in order of preference."""

PATIENCE = 5.0
"""Maximum time of a comparison of all batch sizes, in seconds; beyond it, a larger quantum is tried."""

LAST_PATIENCE = 30.0
"""The same for the largest quantum, which has the fewest batch sizes."""

MASK_SIDES = (7, 28)
"""Sides of the compared masks: of searches, without gradient, and of descents, with gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEquality:
    """The result of the comparison."""

    equal: bool
    """Whether a row's scores and gradient are bit-identical in every batch that the engine runs."""
    quantum: int = 1
    """Batches are multiples of this many rows; see `TorchEvaluator.quantum`."""
    detail: str
    """The compared sizes, and the difference of rows if there is any."""

    @property
    def step(self) -> Step:
        """The result as a step, reported beside the optimisation steps."""
        return Step(EQUAL_ROWS, self.equal, self.detail)


def find_equality(
    evaluator: TorchEvaluator, probe: Tensor, throughput: Throughput, *, patience: float = PATIENCE
) -> RowEquality:
    """Returns the smallest quantum at which rows are equal in every batch, or that none was found.

    Args:
        evaluator: The model's evaluator; it does not pad batches yet.
        probe: At least two images of noise (n, 3, height, width).
        throughput: Rows per batch, except for larger last batches of a request, and their speed.
        patience: Maximum time for each quantum except the largest, in seconds.
    """
    module = evaluator.module
    if isinstance(module, BlackBox) and not module.in_process:
        return _tolerance(f"rows are not compared, because the model runs {module.where}")
    largest = 0.0
    quanta = [each for each in QUANTA if each <= throughput.batch_size]
    for quantum in quanta:
        sizes = sizes_run(throughput.batch_size, quantum)
        if _seconds(throughput, sizes) > (LAST_PATIENCE if quantum == quanta[-1] else patience):
            continue
        try:
            difference = _difference(evaluator, probe, sizes)
        except Exception as error:  # noqa: BLE001 - a model may refuse a size in any way; the engine runs parts alone then
            return _tolerance(f"rows are not compared, because a batch failed with {type(error).__name__}")
        if difference == 0:
            return RowEquality(equal=True, quantum=quantum, detail=_described(sizes))
        largest = max(largest, difference)
    if not largest:
        return _tolerance(f"rows are not compared, because that would take more than {LAST_PATIENCE:g} seconds")
    return _tolerance(f"rows differ between batches by up to {largest:.1g} of the largest value")


def _tolerance(why: str) -> RowEquality:
    return RowEquality(equal=False, detail=f"{why}: results agree to a tolerance, not to the last bit")


def _described(sizes: Sequence[int]) -> str:
    multiples = f"multiples of {sizes[0]} " if sizes[0] > 1 else ""
    return (
        f"a row is equal to the last bit in batches of {multiples}up to {sizes[-1]} images, as compared on this machine"
    )


def _seconds(throughput: Throughput, sizes: Sequence[int]) -> float:
    """Returns the approximate time of a comparison: every size once, and the rows of the largest alone."""
    rows = sum(sizes) + sizes[-1]
    return rows / throughput.forward + (rows / throughput.backward if throughput.backward else 0.0)


def sizes_run(batch_size: int, quantum: int) -> Sequence[int]:
    """Returns the batch sizes that the engine runs, ascending: multiples of the quantum up to a stretched batch."""
    whole = whole_quanta(batch_size, quantum)
    most = -(-int(whole * STRETCHED) // quantum) * quantum
    return range(quantum, most + 1, quantum)


def whole_quanta(batch_size: int, quantum: int) -> int:
    """Returns the largest multiple of the quantum up to the batch size, because batches are padded to one."""
    return max(quantum, batch_size - batch_size % quantum)


def _difference(evaluator: TorchEvaluator, probe: Tensor, sizes: Sequence[int]) -> float:
    """Returns the first difference found between rows alone and rows in a batch; 0 if there is none."""
    quantum, most = sizes[0], sizes[-1]
    for request in _requests(evaluator, probe, most):
        whole = _evaluated(evaluator, request, 0, most)
        alone = [(start, start + quantum) for start in range(0, most, quantum)]
        # The last rows of the whole, so that the position of a row differs between sizes.
        among_others = [(most - size, most) for size in sizes[1:-1]]
        for start, stop in (*alone, *among_others):
            if difference := _off(whole, start, _evaluated(evaluator, request, start, stop)):
                return difference
    return 0.0


def _requests(evaluator: TorchEvaluator, probe: Tensor, rows: int) -> Iterator[Evaluate]:
    """Yields requests with this number of rows, in all modes in which a model is evaluated."""
    generator = torch.Generator().manual_seed(0)
    subject = Subject(probe[0], probe[1], _top_class(evaluator, probe))
    for exact in (True, False) if evaluator.autocast is not None else (False,):
        for gradient, side in zip(
            (False, True) if evaluator.supports_gradients else (False,), MASK_SIDES, strict=False
        ):
            masks = torch.rand(rows, side, side, generator=generator)
            yield Evaluate(subject=subject, masks=masks, gradient=gradient, exact=exact, probabilities=True)


def _top_class(evaluator: TorchEvaluator, probe: Tensor) -> int:
    """Returns the top class on an image of noise: its score has a gradient that rounding does not hide."""
    request = Evaluate(subject=Subject(probe[0], probe[1], None), masks=torch.ones(1, 1, 1))
    return int(evaluator.evaluate([Part(request, 0, 1)])[0].top_class)


def _evaluated(evaluator: TorchEvaluator, request: Evaluate, start: int, stop: int) -> Sequence[Tensor]:
    """Returns the answer for some rows, in unequal parts like those of several jobs."""
    parts, size = [], 1
    while start < stop:
        parts.append(Part(request, start, min(start + size, stop)))
        start, size = start + size, size + 1
    scores = join(evaluator.evaluate(parts))
    return [each for each in (scores.probabilities, scores.target, scores.gradient) if each is not None]


def _off(whole: Sequence[Tensor], start: int, some: Sequence[Tensor]) -> float:
    """Returns the largest difference of some rows from those of the whole batch, relative to its largest value."""
    largest = 0.0
    for values, of_whole in zip(some, whole, strict=True):
        same_rows = of_whole[start : start + len(values)]
        if not torch.equal(values, same_rows):
            largest = max(largest, float((values - same_rows).abs().max() / of_whole.abs().max()))
    return largest
