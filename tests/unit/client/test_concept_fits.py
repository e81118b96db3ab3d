"""A fit goes on after a lost connection, asks again as the same job, and goes with its caller."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from sagittal.client import AsyncClient, InvalidImage, InvalidRequest, JobCancelled, Unavailable
from sagittal.v1 import explanation_pb2 as pb

PICTURES = [np.full((4, 5, 3), shade, np.uint8) for shade in (0, 100, 200)]
ASKED = {"name": "set", "model": "lamp", "targets": [3]}
GONE = (grpc.StatusCode.UNAVAILABLE, "Socket closed")


def test_a_fit_whose_connection_breaks_is_watched_from_where_it_broke(client, script) -> None:
    script.breaks = [(3, *GONE), (2, *GONE)]
    told = []
    found = client.concepts.fit(PICTURES, on_progress=told.append, **ASKED)
    assert found.name == "set"
    assert script.watched_after == [3, 5]
    assert len(script.fits) == 1
    assert [each.phase for each in told] == ["queued", "started", "optimise"]


def test_a_fit_that_breaks_before_its_job_is_known_is_asked_for_again_as_the_same(client, script) -> None:
    script.breaks = [(0, *GONE), (0, *GONE)]
    client.concepts.fit(PICTURES, on_progress=None, **ASKED)
    assert len(script.fits) == 3
    assert len({asked[0].settings.request_id for asked in script.fits}) == 1
    assert all(asked == script.fits[0] for asked in script.fits)


def test_images_that_can_be_taken_once_only_are_not_asked_for_again(client, script) -> None:
    script.breaks = [(0, *GONE)]
    with pytest.raises(Unavailable):
        client.concepts.fit(iter(PICTURES), **ASKED)
    assert len(script.fits) == 1


def test_a_file_that_is_not_there_keeps_its_place_empty_and_ends_no_fit(client, script, tmp_path: Path) -> None:
    client.concepts.fit([PICTURES[0], tmp_path / "none.png", PICTURES[1]], **ASKED)
    _, *sent = script.fits[0]
    assert [bool(each.image.encoded or each.image.HasField("pixels")) for each in sent] == [True, False, True]


def test_what_is_no_image_is_the_error_and_begins_no_fit(client, script) -> None:
    with pytest.raises(InvalidImage, match="got float"):
        client.concepts.fit([1.5], **ASKED)
    assert [asked[-1].WhichOneof("part") for asked in script.fits] == [None]


def test_the_method_of_a_fit_is_sent(client, script) -> None:
    client.concepts.fit(PICTURES, method="components", **ASKED)
    assert script.fits[0][0].settings.fit.method == "components"


def test_parts_go_with_their_images_and_must_be_as_many(client, script) -> None:
    box = (0.0, 0.25, 0.5, 1.0)
    client.concepts.fit(PICTURES, parts=[{}, {"beak": box}, {}], **ASKED)
    _, *sent = script.fits[0]
    assert [len(each.annotated_parts) for each in sent] == [0, 1, 0]
    (part,) = sent[1].annotated_parts
    assert (part.name, part.left, part.top, part.right, part.bottom) == ("beak", *box)
    with pytest.raises(InvalidRequest, match="parts of 1 images for 3 images"):
        client.concepts.fit(PICTURES, parts=[{}], **ASKED)


@pytest.mark.parametrize(("options", "cancelled"), [({}, 1), ({"detach": True}, 0)])
def test_interrupting_a_fit_cancels_its_job_unless_it_is_detached(client, script, options, cancelled) -> None:
    def interrupt(_progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.concepts.fit(PICTURES, on_progress=interrupt, **ASKED, **options)
    assert len(script.cancelled_jobs) == cancelled


def test_a_job_that_was_cancelled_is_the_error_and_is_left_alone(client, script) -> None:
    script.log[2:] = [pb.ExplanationEvent(job_id="j", sequence=3, cancelled=pb.Cancelled(reason="requested"))]
    with pytest.raises(JobCancelled, match="requested"):
        client.concepts.fit(PICTURES, **ASKED)
    assert not script.cancelled_jobs


def test_a_job_that_failed_since_something_was_away_is_not_watched_again(client, script, make_failure) -> None:
    script.log[2:] = [pb.ExplanationEvent(job_id="j", sequence=3, failed=make_failure(14, "MODEL_UNREACHABLE"))]
    with pytest.raises(Unavailable):
        client.concepts.fit(PICTURES, **ASKED)
    assert not script.watched_after


async def test_the_asyncio_client_does_the_same(address, script, options) -> None:
    script.breaks = [(0, *GONE), (3, *GONE)]
    async with AsyncClient(address, options=options) as other:
        assert (await other.concepts.fit(PICTURES, **ASKED)).name == "set"
        assert script.watched_after == [3]


async def test_cancelling_the_task_that_waits_cancels_the_job(address, script, options, job_id) -> None:
    script.hang_after = 3
    going = asyncio.Event()
    async with AsyncClient(address, options=options) as other:
        task = asyncio.create_task(
            other.concepts.fit(PICTURES, on_progress=lambda each: each.phase == "started" and going.set(), **ASKED)
        )
        await going.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert script.cancelled_jobs == [job_id]
