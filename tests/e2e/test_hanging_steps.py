"""Steps that never end: their process is killed, and deadlines and cancellations hold meanwhile."""

from urllib.request import urlopen

import pytest
from deaths_support import PICTURE, QUICK, RED, events_of, model, wait_for_end
from e2e_stack import KNOWN_MODEL, PATIENCE, Stack, free_port, wait_until

from sagittal.client import Client


@pytest.mark.parametrize("factory", ["HangsOnRed", "HangsOnRedWithTheLock"])
def test_a_step_that_hangs_ends_with_its_process_and_jobs_of_other_models_are_done(
    private_stack: Stack, factory: str
) -> None:
    stack, port = private_stack, free_port()
    attempts = {"SAGITTAL_QUEUE__MAX_ATTEMPTS": "2"}
    stack.start_service(**attempts)
    worker = stack.start_worker(
        models=model(factory) + KNOWN_MODEL, SAGITTAL_STALL_SECONDS="2", SAGITTAL_METRICS_PORT=str(port), **attempts
    )
    stack.wait_for_model("deadly")
    stack.wait_for_model("left")
    with Client(stack.address) as client:
        guilty = client.submit(RED, model="deadly", target=1, method=QUICK).job_id
        wait_until(lambda: client.job(guilty).state == "running", "the job to hang")
        innocent = client.submit(PICTURE, model="left", target=1, method=QUICK).job_id
        other, killer = wait_for_end(client, innocent, guilty, seconds=3 * PATIENCE)
        assert other.state == "completed"
        assert (killer.state, killer.failure_reason, killer.attempt) == ("failed", "JOB_BURIED", 2)
    first = events_of(worker, "worker-process-hangs")[0]
    assert first["doing"] == ["a step of deadly"]
    assert guilty in first["jobs"]
    assert "meet_red" in worker.text, "the stack says where it hung"

    def counted() -> bool:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return 'sagittal_worker_restarts_total{reason="hung"} 2.0' in answer.read().decode()

    wait_until(lambda: len(events_of(worker, "worker-started")) == 3, "the last process runs")
    wait_until(counted, "the metric counts them")


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_deadline_and_a_cancellation_end_a_job_while_its_step_hangs(private_stack: Stack, how: str) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(models=model("HangsOnRed"), SAGITTAL_STALL_SECONDS="600")
    stack.wait_for_model("deadly")
    with Client(stack.address) as client:
        for deadline in (3.0, 12.0, 48.0):  # on a busy machine, a deadline may pass before the job runs
            given = deadline if how == "deadline" else None
            job = client.submit(RED, model="deadly", target=1, method=QUICK, deadline=given).job_id
            wait_until(lambda: client.job(job).state != "queued", "the job to hang")  # noqa: B023 - it waits here
            if client.job(job).state == "running":
                break
        if how == "cancelled":
            client.cancel(job)
        (ended,) = wait_for_end(client, job)
        assert ended.state == ("cancelled" if how == "cancelled" else "failed")
        assert ended.failure_reason == ("" if how == "cancelled" else "DEADLINE_PASSED")
    assert not events_of(worker, "worker-process-ended")
