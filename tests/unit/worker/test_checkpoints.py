"""Checkpoints as bytes, when they are stored, and what they count."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sagittal.core.jobs import Job, JobKind, JobState, Lane, Lease
from sagittal.engine.task import Usage
from sagittal.explain import events
from sagittal.models.loaded import LoadedModel
from sagittal.worker.execution.checkpoints import Checkpoints, Restored, pack, unpack

STATE = {"masks": torch.rand(2, 7, 7), "step": torch.tensor(3), "sets": torch.arange(6, dtype=torch.uint8).view(3, 2)}
USED = Usage(evaluations=90, gradient_evaluations=60, metric_evaluations=4)
LEFT = Restored(state=STATE, usage=USED, seconds=12.5)
PREDICTION = events.Prediction(events.ClassScore(0, 0.9), (), 0.0, "blur")


def model(digest: str = "d") -> LoadedModel:
    return SimpleNamespace(digest=digest, device=torch.device("cpu"))  # type: ignore[return-value]


@pytest.fixture
def lease() -> Lease:
    job = Job(
        job_id="j",
        kind=JobKind.EXPLANATION,
        state=JobState.RUNNING,
        model="m",
        version="1",
        method="igos++",
        lane=Lane.INTERACTIVE,
        tenant="default",
        request_id="",
        created=0.0,
        ended=None,
        deadline=None,
        attempt=2,
        worker="w",
        last_sequence=1,
        cancel_requested=False,
    )
    return Lease(job=job, request=b"", images={}, token=1)


def test_a_checkpoint_comes_back_as_it_was(lease: Lease):
    restored = unpack(replace(lease, checkpoint=pack(LEFT, model())), model())
    assert (restored.usage, restored.seconds) == (USED, 12.5)
    assert restored.state.keys() == STATE.keys()
    for name, tensor in restored.state.items():
        assert tensor.dtype == STATE[name].dtype
        assert torch.equal(tensor, STATE[name])


def test_tensors_that_share_memory_are_stored(lease: Lease):
    shared = torch.rand(3, 4)
    state = {"whole": shared, "part": shared[1], "turned": shared.T}
    restored = unpack(replace(lease, checkpoint=pack(Restored(state=state), model())), model()).state
    assert torch.equal(restored["turned"], shared.T)


@pytest.mark.parametrize(
    "checkpoint",
    [
        None,
        b"",
        b"not a checkpoint",
        pickle.dumps({"masks": 1}),
        pack(LEFT, model("another")),
        pack(LEFT, model())[:-10],
    ],
    ids=["none", "empty", "garbage", "pickle", "another-model", "cut-off"],
)
def test_without_a_checkpoint_of_this_model_a_job_starts_afresh(lease: Lease, checkpoint: bytes | None):
    restored = unpack(replace(lease, checkpoint=checkpoint), model())
    assert not restored.state
    assert restored.usage == Usage()


def stored_by(lease: Lease, seconds: float) -> tuple[Checkpoints, list[int]]:
    """Returns checkpoints, and the list of evaluations in each one that is stored."""
    stored: list[int] = []

    def store(data: bytes) -> None:
        stored.append(unpack(replace(lease, checkpoint=data), model()).usage.evaluations)

    return Checkpoints(store, model(), seconds=seconds), stored


def test_what_the_preparation_used_is_left_out_since_it_is_done_again(lease: Lease):
    checkpoints, stored = stored_by(lease, 0.0)
    usage = replace(USED)
    checkpoints.begin(usage, 0.0)
    usage.evaluations += 3
    checkpoints.note(PREDICTION)
    usage.evaluations += 10
    checkpoints.note(events.Checkpoint(STATE))
    usage.evaluations += 10
    checkpoints.note(events.Checkpoint(STATE))
    assert stored == [100, 110]


def test_checkpoints_are_stored_no_more_often_than_asked_but_the_newest_on_demand(lease: Lease):
    checkpoints, stored = stored_by(lease, 1000.0)
    usage = Usage()
    checkpoints.begin(usage, 0.0)
    checkpoints.store_newest()
    for _ in range(3):
        usage.evaluations += 10
        checkpoints.note(events.Checkpoint(STATE))
    usage.evaluations += 5
    assert stored == []
    checkpoints.store_newest()
    checkpoints.store_newest()
    assert stored == [30]


def test_the_time_of_an_earlier_attempt_counts_as_far_as_its_checkpoint_went(lease: Lease):
    stored: list[Restored] = []
    checkpoints = Checkpoints(
        lambda data: stored.append(unpack(replace(lease, checkpoint=data), model())), model(), seconds=0.0
    )
    checkpoints.begin(Usage(), 100.0)
    checkpoints.note(events.Checkpoint(STATE))
    assert 100.0 <= stored[0].seconds <= checkpoints.seconds < 130.0
