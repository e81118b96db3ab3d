"""Models and jobs that kill, stop or fill the process that runs them: the others go on, and it is said which it was."""

import json
from urllib.request import urlopen

import known_models
import numpy as np
import pytest
from e2e_stack import KNOWN_MODEL, PATIENCE, Stack, free_port, wait_until

from sagittal.client import Client, IGOSPlusPlus, Occlusion

MODEL = """
[[models]]
name = "{name}"
source = {{ kind = "python", factory = "deadly_models:{factory}" }}
labels = ["nothing", "left"]
preprocessing = {{ input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }}
"""

PICTURE = (np.clip(known_models.image(known_models.LEFT).permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)
ENDED = ("completed", "failed", "cancelled")
RED = np.zeros((56, 56, 3), np.uint8)
RED[..., 0] = 255

LONG = IGOSPlusPlus(mask_size=7, iterations=30, points=2, tolerance=0)
LONGER = IGOSPlusPlus(mask_size=7, iterations=60, points=4, tolerance=0)
QUICK = Occlusion(window=1, grid=2)


def model(factory: str, name: str = "deadly") -> str:
    return MODEL.format(name=name, factory=factory)


def events_of(program, event: str) -> list[dict]:
    """The lines of a program's log about one kind of event."""
    lines = [line for line in program.text.splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each["event"] == event]


def wait_for_end(client: Client, *job_ids: str, seconds: float = PATIENCE) -> list:
    wait_until(lambda: all(client.job(each).state in ENDED for each in job_ids), "the jobs to end", seconds)
    return [client.job(each) for each in job_ids]


def states(client: Client, name: str) -> list[tuple[str, str]]:
    return [(worker.state, worker.message) for worker in client.model(name).workers]


def test_of_five_jobs_and_one_that_kills_its_worker_only_that_one_is_dead_lettered(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(models=model("DiesOfRed"))
    stack.wait_for_model("deadly")
    with Client(stack.address) as client:
        innocent = [
            client.submit(PICTURE, model="deadly", target=1, method=LONG, seed=seed).job_id for seed in range(5)
        ]
        wait_until(lambda: all(client.job(each).state == "running" for each in innocent), "all run together")
        guilty = client.submit(RED, model="deadly", target=1, method=QUICK).job_id
        *ended, killer = wait_for_end(client, *innocent, guilty, seconds=3 * PATIENCE)
        assert [job.state for job in ended] == ["completed"] * 5
        assert (killer.state, killer.failure_reason, killer.attempt) == ("failed", "JOB_BURIED", 3)
        deaths = events_of(worker, "worker-process-ended")
        assert [death["reason"] for death in deaths] == ["killed"] * 3
        assert set(deaths[0]["jobs"]) == {*innocent, guilty}
        assert [death["jobs"] for death in deaths[1:]] == [[guilty], [guilty]]


@pytest.mark.parametrize("factory", ["HangsOnRed", "HangsOnRedWithTheLock"])
def test_a_step_that_hangs_ends_with_its_process_and_jobs_of_other_models_are_done(private_stack, factory) -> None:
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
def test_a_deadline_and_a_cancellation_end_a_job_while_its_step_hangs(private_stack, how) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(models=model("HangsOnRed"), SAGITTAL_STALL_SECONDS="600")
    stack.wait_for_model("deadly")
    with Client(stack.address) as client:
        deadline = 3.0 if how == "deadline" else None
        job = client.submit(RED, model="deadly", target=1, method=QUICK, deadline=deadline).job_id
        wait_until(lambda: client.job(job).state == "running", "the job to hang")
        if how == "cancelled":
            client.cancel(job)
        (ended,) = wait_for_end(client, job)
        assert ended.state == ("cancelled" if how == "cancelled" else "failed")
        assert ended.failure_reason == ("" if how == "cancelled" else "DEADLINE_PASSED")
    assert not events_of(worker, "worker-process-ended")


def test_a_model_whose_loading_kills_or_hangs_is_quarantined_while_others_go_on(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    expected = {
        "crashes": "it died of SIGSEGV",
        "hangs": "it did not end within 12 s",
        "ends_the_process": "it ended its process with status 0",
    }
    worker = stack.start_worker(
        models="".join(model(f"{name}_when_loaded", name.replace("_", "-")) for name in expected) + KNOWN_MODEL,
        SAGITTAL_LOAD_SECONDS="12",
        SAGITTAL_LOAD_ATTEMPTS="2",
    )
    stack.wait_for_model("left")
    with Client(stack.address) as client:
        assert client.explain(PICTURE, model="left", target=1, method=QUICK).completed is not None
        for name, cause in expected.items():
            wait_until(lambda name=name: states(client, name.replace("_", "-"))[0][0] == "failed", name)
            ((_, message),) = states(client, name.replace("_", "-"))
            assert message.startswith("quarantined: loading it failed 2 times, the last time because ")
            assert cause in message
        tries = len(events_of(worker, "rehearsal-died"))
        assert tries == 2 * len(expected)
        assert client.explain(PICTURE, model="left", target=1, method=QUICK, cache="bypass").completed is not None
        client.load_model("crashes")
        wait_until(lambda: len(events_of(worker, "rehearsal-died")) == tries + 2, "LoadModel asks for more tries")
    assert len(events_of(worker, "worker-started")) == 1, "its process never died"


def test_a_model_whose_loading_takes_all_memory_is_quarantined(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("takes_all_memory_when_loaded"),
        SAGITTAL_LOAD_ATTEMPTS="1",
        SAGITTAL_MEMORY_CEILING_MIB="2000",
    )
    with Client(stack.address) as client:
        wait_until(lambda: "model-quarantined" in worker.text, "the model to be quarantined")
        ((state, message),) = states(client, "deadly")
        assert state == "failed"
        assert "with a ceiling of 2000 MiB (SAGITTAL_MEMORY_CEILING_MIB)" in message
    assert len(events_of(worker, "worker-started")) == 1, "its process never died"


def test_a_model_that_kills_the_worker_while_it_is_loaded_there_is_quarantined_too(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("crashes_every_other_time") + KNOWN_MODEL,
        SAGITTAL_LOAD_ATTEMPTS="2",
        LOADS=str(stack.directory / "loads"),
    )
    with Client(stack.address) as client:
        wait_until(lambda: "model-quarantined" in worker.text, "the model to be quarantined")
        stack.wait_for_model("left")
        assert states(client, "deadly")[0][0] == "failed"
        assert client.explain(PICTURE, model="left", target=1, method=QUICK).completed is not None
    assert len(events_of(worker, "worker-process-ended")) == 2


def test_a_worker_whose_model_leaks_starts_again_before_memory_runs_out_and_no_job_is_lost(private_stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("LeaksOnRed"), SAGITTAL_MEMORY_CEILING_MIB="1400", SAGITTAL_DRAIN="0.2", SAGITTAL_MAX_JOBS="2"
    )
    stack.wait_for_model("deadly")
    with Client(stack.address) as client:
        jobs = [client.submit(RED, model="deadly", target=1, method=LONGER, seed=seed).job_id for seed in range(4)]
        ended = wait_for_end(client, *jobs, seconds=3 * PATIENCE)
        assert [(job.state, job.attempt) for job in ended] == [("completed", 1)] * 4
    reached = events_of(worker, "memory-ceiling-reached")
    assert reached
    assert all(each["used_mib"] >= each["ceiling_mib"] == 1400 for each in reached)
    assert {death["reason"] for death in events_of(worker, "worker-process-ended")} == {"memory"}
