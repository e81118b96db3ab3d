"""Whether rows are equal in every batch is found by comparing them, and the report is what happens."""

import pytest
import torch
from torch import nn

from sagittal.engine.composition import Part
from sagittal.engine.evaluator import BlackBox, BlackBoxEvaluator, TorchEvaluator
from sagittal.engine.requests import Evaluate, Subject
from sagittal.models.measuring import Throughput
from sagittal.models.row_equality import QUANTA, find_equality, sizes_run

CPU = torch.device("cpu")
PROBE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Rounding(nn.Module):
    """Rounds otherwise in some batches, as kernels do; alike where it does not."""

    def __init__(self, differs=lambda _rows: False, *, gradient_only=False):
        super().__init__()
        self.differs, self.gradient_only = differs, gradient_only

    def forward(self, inputs):
        outputs = torch.stack([inputs.amax((1, 2, 3)), inputs.amin((1, 2, 3))], 1)
        off = 1 + 1e-5 * self.differs(len(inputs))
        return outputs + (outputs * off - (outputs * off).detach() if self.gradient_only else outputs * off)


def found(module, batch_size=16, *, gradient=True, forward=1e6, **options):
    evaluator = TorchEvaluator(module=module, device=CPU, supports_gradients=gradient)
    throughput = Throughput(batch_size=batch_size, forward=forward, backward=forward if gradient else 0)
    return find_equality(evaluator, PROBE, throughput, **options)


@pytest.mark.parametrize("quantum", QUANTA)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_smallest_quantum_is_found_at_which_batches_do_not_matter(quantum, gradient):
    equality = found(Rounding(lambda rows: rows % quantum != 0), gradient=gradient)
    assert (equality.equal, equality.quantum) == (True, quantum)
    assert "up to 24 images" in equality.detail


@pytest.mark.parametrize("odd", range(8, 25, 8))
def test_one_size_of_batch_in_which_rows_differ_is_enough_for_a_tolerance_only(odd):
    equality = found(Rounding(lambda rows: rows == odd))
    assert (equality.equal, equality.quantum, equality.step.applied) == (False, 1, False)
    assert "rows differ between batches by up to" in equality.step.detail
    assert "to a tolerance, not to the last bit" in equality.step.detail


def test_gradients_that_differ_are_found_too():
    assert not found(Rounding(lambda rows: rows == 24, gradient_only=True)).equal


def test_a_batch_of_one_is_always_computed_alone():
    equality = found(Rounding(lambda rows: rows > 1), batch_size=1)
    assert (equality.equal, equality.quantum) == (True, 1)


def test_every_size_of_batch_that_the_engine_runs_is_compared():
    seen = set()
    found(Rounding(lambda rows: bool(seen.add(rows))), batch_size=16)
    assert seen == set(sizes_run(16, 1)) == set(range(1, 25))
    assert list(sizes_run(18, 4)) == [4, 8, 12, 16, 20, 24]
    assert list(sizes_run(8, 8)) == [8, 16], "twelve rows are padded"


def test_a_comparison_that_would_take_too_long_is_made_for_larger_quanta_or_not_at_all():
    # All sizes up to 24: 324 rows with and without gradient; multiples of eight: 72.
    assert found(Rounding(), forward=100, patience=2.0).quantum == 8
    slow = found(Rounding(), forward=1, patience=2.0)
    assert not slow.equal
    assert "would take more than 30 seconds" in slow.detail


def test_a_model_that_refuses_a_size_of_batch_is_not_promised_to_be_equal():
    def refuse(rows):
        if rows == 24:
            raise ValueError("by construction")
        return False

    assert "a batch failed with ValueError" in found(Rounding(refuse)).detail


class Answers(BlackBox):
    """Runs elsewhere, or not."""

    def answer(self, images):
        return images.mean((2, 3))


@pytest.mark.parametrize("in_process", [False, True])
def test_nothing_is_promised_of_a_model_that_runs_elsewhere(in_process):
    module = Answers(where="on server there", identity="a", in_process=in_process)
    evaluator = BlackBoxEvaluator(module=module, device=CPU)
    equality = find_equality(evaluator, PROBE, Throughput(batch_size=4, forward=1e6, backward=0))
    assert ("the model runs on server there" in equality.detail) != in_process


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, 10)).eval().requires_grad_(False)


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_reported_of_a_network_is_what_happens_on_this_machine(gradient):
    evaluator = TorchEvaluator(module=network(), device=CPU)
    equality = find_equality(evaluator, PROBE, Throughput(batch_size=8, forward=1e6, backward=1e6))
    masks = torch.rand(12, 5, 5, generator=torch.Generator().manual_seed(1))
    request = Evaluate(subject=Subject(PROBE[0], PROBE[1], 3), masks=masks, gradient=gradient)
    (whole,) = evaluator.evaluate([Part(request, 0, len(masks))])
    tolerance = 0 if equality.equal else 1e-5
    for start in range(0, len(masks) - equality.quantum + 1, equality.quantum):
        rows = slice(start, start + equality.quantum)
        (alone,) = evaluator.evaluate([Part(request, rows.start, rows.stop)])
        torch.testing.assert_close(alone.target, whole.target[rows], atol=tolerance, rtol=0)
        if gradient:
            torch.testing.assert_close(alone.gradient, whole.gradient[rows], atol=tolerance, rtol=0)
