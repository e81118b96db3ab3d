"""Jobs that kill or fill the process that runs them: the other jobs are completed, and the log names the guilty one."""

from deaths_support import PICTURE, QUICK, RED, events_of, model, wait_for_end
from e2e_stack import PATIENCE, Stack, wait_until

from sagittal.client import Client, IGOSPlusPlus

LONG = IGOSPlusPlus(mask_size=7, iterations=30, points=2, tolerance=0)


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


def test_a_worker_whose_model_leaks_starts_again_before_memory_runs_out_and_no_job_is_lost(private_stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("LeaksOnRed"), SAGITTAL_MEMORY_CEILING_MIB="1400", SAGITTAL_DRAIN="0.2", SAGITTAL_MAX_JOBS="2"
    )
    stack.wait_for_model("deadly")
    with Client(stack.address) as client:
        # two jobs at a time share batches: 60 or more batches of 30 MiB each are more than the ceiling
        jobs = [client.submit(RED, model="deadly", target=1, method=LONG, seed=seed).job_id for seed in range(2)]
        ended = wait_for_end(client, *jobs, seconds=3 * PATIENCE)
        assert [(job.state, job.attempt) for job in ended] == [("completed", 1)] * 2
    reached = events_of(worker, "memory-ceiling-reached")
    assert reached
    assert all(each["used_mib"] >= each["ceiling_mib"] == 1400 for each in reached)
    assert {death["reason"] for death in events_of(worker, "worker-process-ended")} == {"memory"}
