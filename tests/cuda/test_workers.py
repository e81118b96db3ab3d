"""Workers on a card: one dies and another resumes its jobs, two share it, and models make room for each other."""

import json
import signal

import numpy as np
import pytest
from deaths_support import model
from e2e_stack import KNOWN_MODEL, wait_until
from known_models import LEFT, image

from sagittal.client import Client, IGOSPlusPlus, ModelInput, Progress

pytestmark = pytest.mark.cuda

SLOW = model("Slow", "slow")
LONG = IGOSPlusPlus(mask_size=14, iterations=60, points=2, levels=0, tolerance=0)
OPTIONS = {"model": "slow", "target": 1, "method": LONG, "seed": 11, "cache": "bypass", "progress_interval": 0.0}
SUBJECT = ModelInput(image(LEFT).numpy())


def events(log: str, name: str) -> list[dict]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_a_job_of_a_worker_that_is_killed_resumes_on_another(private_stack, device):
    stack = private_stack
    stack.start_service()
    quick = {"SAGITTAL_CHECKPOINT_SECONDS": "0.05", "SAGITTAL_DEVICE": str(device)}
    workers = [stack.start_worker(models=SLOW, **quick)]
    stack.wait_for_model("slow")
    with Client(stack.address) as client:
        undisturbed = client.explain(SUBJECT, **OPTIONS)
        for event in client.stream(SUBJECT, **OPTIONS):
            if isinstance(event, Progress) and event.fraction > 0.2 and len(workers) == 1:
                workers[0].stop(signal.SIGKILL)
                workers.append(stack.start_worker(models=SLOW, **quick))
        broken = client.get(event.job_id)
    assert events(workers[1].text, "job-resumed")[0]["evaluations"] > 0
    assert broken.evaluations == undisturbed.evaluations
    np.testing.assert_allclose(broken.mask, undisturbed.mask, rtol=0, atol=1e-2)


def test_two_workers_share_a_card(private_stack, device):
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(SAGITTAL_DEVICE=f"{device},{device}", SAGITTAL_WORKER_NAME="box")
    with Client(stack.address) as client:

        def ready() -> set[str]:
            states = [state for found in client.models() for state in found.workers]
            return {state.worker for state in states if state.state == "ready"}

        wait_until(lambda: ready() == {"box-0", "box-1"}, "both have the model")
        jobs = [client.submit(SUBJECT, model="left", method="igos++", seed=seed, cache="bypass") for seed in range(8)]
        for job in jobs:
            wait_until(lambda job=job: client.get(job.job_id).completed is not None, "the job is completed")
    assert worker.stop() == 0


def test_models_make_room_for_each_other_on_a_card(private_stack, device):
    names = ("left", "other", "third")
    models = "".join(KNOWN_MODEL.replace('"left"\nsource', f'"{name}"\nload = "on-demand"\nsource') for name in names)
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(models=models, SAGITTAL_DEVICE=str(device), SAGITTAL_MODEL_MEMORY_MIB="1")
    with Client(stack.address) as client:
        wait_until(lambda: len(list(client.models())) == len(names), "all are registered")
        for name in (*names, *names):
            found = client.explain(SUBJECT, model=name, method="occlusion", target=1, cache="bypass")
            assert found.mask is not None
    assert events(worker.text, "model-unloaded")
