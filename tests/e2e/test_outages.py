"""What happens while parts are missing: jobs wait, callers are told, and everything goes on when they are back."""

import signal
import time

import known_models
import numpy as np
import pytest
from e2e_stack import PATIENCE, free_port, wait_until

from sagittal.client import Accepted, Client, IGOSPlusPlus, Options, Retry, Unavailable
from sagittal.process.embedded import EmbeddedValkey

QUICK = IGOSPlusPlus(mask_size=7, iterations=2, points=1)
PICTURE = (np.clip(known_models.image(known_models.LEFT).permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)


def test_a_worker_drains_on_sigterm_and_hands_back_what_it_cannot_finish_which_waits_and_says_so(private_stack):
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(SAGITTAL_DRAIN="0.5")
    stack.wait_for_model("left")
    with Client(stack.address) as client:
        endless = IGOSPlusPlus(mask_size=7, iterations=1000, points=30, tolerance=0)
        job = client.submit(PICTURE, model="left", target=1, method=endless)
        wait_until(lambda: client.job(job.job_id).state == "running", "the job to run")
        assert worker.stop() == 0
        assert client.job(job.job_id).state == "queued"
        client.cancel(job.job_id)
        assert client.job(job.job_id).state == "cancelled"

        events = client.stream(PICTURE, model="left", target=1, method=QUICK)
        accepted = next(events)
        assert isinstance(accepted, Accepted)
        assert accepted.ready_workers == 0
        stack.start_worker()
        assert type(list(events)[-1]).__name__ == "Completed"


def test_cancelling_frees_the_worker(client):
    endless = IGOSPlusPlus(mask_size=7, iterations=1000, points=100, tolerance=0)
    job = client.submit(PICTURE, model="left", target=1, method=endless)
    wait_until(lambda: client.job(job.job_id).state == "running", "the job to run")
    client.cancel(job.job_id)
    wait_until(lambda: client.job(job.job_id).state == "cancelled", "the job to be cancelled")

    stream = client.stream(PICTURE, model="left", target=1, method=endless, seed=1)
    dropped = next(stream).job_id
    wait_until(lambda: client.job(dropped).state == "running", "the job to run")
    stream.close()
    wait_until(lambda: client.job(dropped).state == "cancelled", "the dropped job to be cancelled")


def test_redis_may_come_late_go_away_and_come_back(tmp_path):
    """Neither service nor worker ends; calls fail within bounded time; what was accepted is done when Redis is back."""
    from e2e_stack import Stack

    port = free_port()
    stack = Stack(tmp_path, f"redis://127.0.0.1:{port}/0")
    data = tmp_path / "valkey"
    data.mkdir()
    try:
        service = stack.start_service()
        worker = stack.start_worker()
        with Client(stack.address, options=Options(retry=Retry(call_seconds=0))) as client:
            with pytest.raises(Unavailable):
                client.predict(PICTURE, model="left")
            with EmbeddedValkey(data, port=port, persist=True):
                stack.wait_for_model("left")
                job = client.submit(
                    PICTURE,
                    model="left",
                    target=1,
                    method=IGOSPlusPlus(mask_size=7, iterations=300, tolerance=0),
                    seed=5,
                )
            started = time.monotonic()
            with pytest.raises(Unavailable):
                client.job(job.job_id)
            assert time.monotonic() - started < PATIENCE / 3
            with EmbeddedValkey(data, port=port, persist=True):
                wait_until(lambda: _state(client, job.job_id) == "completed", "the job to be done after the outage")
                sequences = [event.sequence for event in client.watch(job.job_id)]
                assert sequences == list(range(1, len(sequences) + 1))
        assert service.process.poll() is None
        assert worker.process.poll() is None
        assert worker.stop(signal.SIGTERM) == 0
        assert service.stop(signal.SIGTERM) == 0
    finally:
        stack.stop()


def _state(client: Client, job_id: str) -> str:
    try:
        return client.job(job_id).state
    except Unavailable:
        return "unavailable"
