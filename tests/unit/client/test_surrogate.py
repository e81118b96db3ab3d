"""A surrogate that arrives predicts masks of any size, without a service."""

import numpy as np
import pytest

from sagittal.client import InvalidRequest, Surrogate
from sagittal.client.images import to_tensor
from sagittal.client.parsing import parse_event
from sagittal.v1 import explanation_pb2 as pb

HALVES = np.array([[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]], np.float16)


@pytest.fixture
def surrogate() -> Surrogate:
    """The left half is all that matters."""
    message = pb.ExplanationEvent()
    message.surrogate.occlusions.CopyFrom(to_tensor(HALVES))
    message.surrogate.scores.CopyFrom(to_tensor(np.array([1.0, 0.0, 1.0, 0.0], np.float16)))
    message.surrogate.relevance.CopyFrom(to_tensor(np.array([[1.0, 0.0], [1.0, 0.0]], np.float16)))
    message.surrogate.noise = 0.01
    found = parse_event(message)
    assert isinstance(found, Surrogate)
    return found


def test_it_predicts_masks_of_any_size(surrogate) -> None:
    masks = np.zeros((3, 6, 10))
    masks[0, :, :5], masks[1, :, 5:], masks[2, :, :3] = 1.0, 1.0, 1.0
    left, right, part = surrogate.predict(masks)
    assert left == pytest.approx(1.0, abs=0.05)
    assert right == pytest.approx(0.0, abs=0.05)
    assert right < part < left


def test_masks_of_another_shape_are_refused(surrogate) -> None:
    with pytest.raises(InvalidRequest, match=r"expected \(n, height, width\)") as refused:
        surrogate.predict(np.zeros((6, 10)))
    assert refused.value.field == "masks"
