"""What callers are told of jobs that the queue ends."""

import pytest

from sagittal.queue.events import Ending
from sagittal.v1 import explanation_pb2 as pb


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_job_whose_deadline_passed_is_advised_what_helps_it_whatever_its_lane(attempt) -> None:
    ending = Ending(reason="expired", scope="job", job_id="j", token="t", attempt=attempt, worker="w", detail="")  # noqa: S106 - of a lease
    message = pb.ExplanationEvent.FromString(ending.event(1.0)).failed.message
    assert message.endswith("set a later deadline")
    assert "lane" not in message
