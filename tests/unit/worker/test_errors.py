"""What the library's errors are to a caller."""

import pytest

from sagittal.core.errors import FailedPrecondition, InvalidRequest, ModelFailed
from sagittal.engine import EvaluationFailed
from sagittal.engine.requests import OutOfBudget
from sagittal.explain import InvalidParameter, Unsupported
from sagittal.worker.execution.run import translate


def test_a_parameter_that_turns_out_wrong_names_its_whole_path():
    error = translate(InvalidParameter("layer", "the model has no layer 'nope'"), "grad_cam")
    assert isinstance(error, InvalidRequest)
    assert error.field == "spec.method.grad_cam.layer"
    assert error.message == "spec.method.grad_cam.layer: the model has no layer 'nope'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EvaluationFailed("NaN"), ModelFailed),
        (Unsupported("no layers"), FailedPrecondition),
        (OutOfBudget("evaluations"), FailedPrecondition),
    ],
)
def test_expected_errors_keep_their_meaning(error, expected):
    assert isinstance(translate(error), expected)


def test_a_bug_is_not_told_to_the_caller():
    assert translate(ZeroDivisionError()) is None
