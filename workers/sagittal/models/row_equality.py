"""Whether a row's result depends on the batch that it is computed in: measured on this machine when a model is loaded.

Libraries choose kernels by the processor, its settings and the size of the batch, and kernels sum in different orders.
So nothing is assumed of them: rows in every size of batch that the engine runs are compared with the same rows alone.
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
"""Name of the step that reports what was found."""

QUANTA = (1, 2, 4, 8)
"""Multiples of which batches may have to be for rows to be equal, the one to be preferred first."""

PATIENCE = 5.0
"""Longest time that a comparison of all sizes of batch may take, in seconds: then a larger quantum is tried."""

LAST_PATIENCE = 30.0
"""The same for the largest quantum, of which fewest batches are multiples."""

MASK_SIDES = (7, 28)
"""Sides of the masks that are compared: of searches, which ask without gradient, and of descents, which ask with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEquality:
    """What was found."""

    equal: bool
    """Whether a row's scores and gradient are the same to the last bit in every batch that the engine runs."""
    quantum: int = 1
    """Batches are multiples of this many rows; see `TorchEvaluator.quantum`."""
    detail: str
    """What was compared, and by how much rows differ where they do."""

    @property
    def step(self) -> Step:
        """The report, beside the steps that made the model faster."""
        return Step(EQUAL_ROWS, self.equal, self.detail)


def find_equality(
    evaluator: TorchEvaluator, probe: Tensor, throughput: Throughput, *, patience: float = PATIENCE
) -> RowEquality:
    """Returns the smallest quantum at which rows are equal in every batch, or that none was found.

    Args:
        evaluator: What runs the model; it pads no batches yet.
        probe: At least two images of noise (n, 3, height, width).
        throughput: Rows of a batch, the engine's larger last batches of a request aside, and how fast they are.
        patience: Longest time for a quantum but the largest, in seconds.
    """
    module = evaluator.module
    if isinstance(module, BlackBox) and not module.in_process:
        return _tolerance(f"rows are not compared, since the model runs {module.where}")
    largest = 0.0
    quanta = [each for each in QUANTA if each <= throughput.batch_size]
    for quantum in quanta:
        sizes = sizes_run(throughput.batch_size, quantum)
        if _seconds(throughput, sizes) > (LAST_PATIENCE if quantum == quanta[-1] else patience):
            continue
        try:
            difference = _difference(evaluator, probe, sizes)
        except Exception as error:  # noqa: BLE001 - a model may refuse a size in any way; the engine runs parts alone then
            return _tolerance(f"rows are not compared, since a batch failed with {type(error).__name__}")
        if difference == 0:
            return RowEquality(equal=True, quantum=quantum, detail=_described(sizes))
        largest = max(largest, difference)
    if not largest:
        return _tolerance(f"rows are not compared, since that would take more than {LAST_PATIENCE:g} seconds")
    return _tolerance(f"rows differ between batches by up to {largest:.1g} of the largest value")


def _tolerance(why: str) -> RowEquality:
    return RowEquality(equal=False, detail=f"{why}: results agree to a tolerance, not to the last bit")


def _described(sizes: Sequence[int]) -> str:
    multiples = f"multiples of {sizes[0]} " if sizes[0] > 1 else ""
    return (
        f"a row is equal to the last bit in batches of {multiples}up to {sizes[-1]} images, as compared on this machine"
    )


def _seconds(throughput: Throughput, sizes: Sequence[int]) -> float:
    """Returns the time that a comparison takes, about: every size once, and the rows of the largest alone."""
    rows = sum(sizes) + sizes[-1]
    return rows / throughput.forward + (rows / throughput.backward if throughput.backward else 0.0)


def sizes_run(batch_size: int, quantum: int) -> Sequence[int]:
    """Returns the sizes of batches that the engine runs, ascending: multiples of the quantum up to a stretched one."""
    whole = whole_quanta(batch_size, quantum)
    most = -(-int(whole * STRETCHED) // quantum) * quantum
    return range(quantum, most + 1, quantum)


def whole_quanta(batch_size: int, quantum: int) -> int:
    """Returns the multiple of the quantum that is at most the batch size, since batches are padded to one."""
    return max(quantum, batch_size - batch_size % quantum)


def _difference(evaluator: TorchEvaluator, probe: Tensor, sizes: Sequence[int]) -> float:
    """Returns the first difference that is found between rows alone and among others; 0 if there is none."""
    quantum, most = sizes[0], sizes[-1]
    for request in _requests(evaluator, probe, most):
        whole = _evaluated(evaluator, request, 0, most)
        alone = [(start, start + quantum) for start in range(0, most, quantum)]
        # The last rows of the whole, so that a row's place is another in each size.
        among_others = [(most - size, most) for size in sizes[1:-1]]
        for start, stop in (*alone, *among_others):
            if difference := _off(whole, start, _evaluated(evaluator, request, start, stop)):
                return difference
    return 0.0


def _requests(evaluator: TorchEvaluator, probe: Tensor, rows: int) -> Iterator[Evaluate]:
    """Yields requests of as many rows, in all the ways in which a model is asked."""
    generator = torch.Generator().manual_seed(0)
    subject = Subject(probe[0], probe[1], _top_class(evaluator, probe))
    for exact in (True, False) if evaluator.autocast is not None else (False,):
        for gradient, side in zip(
            (False, True) if evaluator.supports_gradients else (False,), MASK_SIDES, strict=False
        ):
            masks = torch.rand(rows, side, side, generator=generator)
            yield Evaluate(subject=subject, masks=masks, gradient=gradient, exact=exact, probabilities=True)


def _top_class(evaluator: TorchEvaluator, probe: Tensor) -> int:
    """Returns the class of an image of noise, whose score has a gradient that is not lost in rounding."""
    request = Evaluate(subject=Subject(probe[0], probe[1], None), masks=torch.ones(1, 1, 1))
    return int(evaluator.evaluate([Part(request, 0, 1)])[0].top_class)


def _evaluated(evaluator: TorchEvaluator, request: Evaluate, start: int, stop: int) -> Sequence[Tensor]:
    """Returns the answer for some rows, which come in unequal parts as those of several jobs do."""
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
