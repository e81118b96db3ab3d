"""A worker with several devices has an engine on each, and they live and die together."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from e2e_stack import PATIENCE, Stack, wait_until

from sagittal.client import Client
from sagittal.models.sources import ModelUnavailable
from sagittal.worker.devices import named_devices


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_each_device_gets_an_engine_and_all_end_together(private_stack: Stack) -> None:
    private_stack.start_service()
    worker = private_stack.start_worker(SAGITTAL_DEVICE="cpu, cpu", SAGITTAL_WORKER_NAME="box", SAGITTAL_THREADS="1")
    with Client(private_stack.address) as client:

        def ready() -> set[str]:
            states = [state for model in client.models() for state in model.workers]
            return {state.worker for state in states if state.state == "ready"}

        wait_until(lambda: ready() == {"box-0", "box-1"}, "both engines have the model")
        image = np.full((56, 56, 3), 200, np.uint8)
        assert client.explain(image, model="left", method="occlusion").mask is not None
    first = children(worker.process.pid)[0]
    os.kill(first, signal.SIGKILL)
    assert worker.process.wait(PATIENCE) != 0
    assert "workers-stopped" in worker.text


def test_a_wish_names_devices() -> None:
    assert named_devices("") == []
    assert named_devices("cpu") == ["cpu"]
    assert named_devices("cuda:0, cuda:1,") == ["cuda:0", "cuda:1"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there are GPUs")
def test_every_gpu_of_none_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="there is none"):
        named_devices("cuda:*")
