"""A worker with several devices has an engine on each; one that dies is started again beside the others."""

import http.client
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from e2e_stack import PATIENCE, Program, Stack, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

from sagittal.client import Client
from sagittal.models.sources import ModelUnavailable
from sagittal.process.embedded import EmbeddedValkey
from sagittal.process.probes import LIVE, READY
from sagittal.worker.devices import named_devices
from sagittal.worker.main import USAGE


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_each_device_gets_an_engine_and_one_that_dies_is_started_again(private_stack: Stack) -> None:
    private_stack.start_service()
    worker = private_stack.start_worker(SAGITTAL_DEVICE="cpu, cpu", SAGITTAL_WORKER_NAME="box", SAGITTAL_THREADS="1")
    with Client(private_stack.address) as client:

        def ready() -> set[str]:
            states = [state for model in client.models() for state in model.workers]
            return {state.worker for state in states if state.state == "ready"}

        wait_until(lambda: ready() == {"box-0", "box-1"}, "both engines have the model")
        image = np.full((56, 56, 3), 200, np.uint8)
        assert client.explain(image, model="left", method="occlusion").mask is not None
        first, second = children(worker.process.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(set(children(worker.process.pid)) - {first, second}) == 1, "the first is started again")
        assert second in children(worker.process.pid)
        wait_until(lambda: worker.text.count("model-ready") == 3, "it has the model again")
        assert client.explain(image, model="left", method="occlusion", cache="bypass").mask is not None
    assert worker.stop(signal.SIGTERM) == 0
    assert '"statuses": [0, 0]' in worker.text, "one signal drains every process"


def test_a_killed_worker_leaves_no_process(private_stack: Stack) -> None:
    worker = private_stack.start_worker(SAGITTAL_DEVICE="cpu, cpu")
    wait_until(lambda: worker.text.count("worker-started") == 2, "both processes run")
    pids = children(worker.process.pid)
    worker.stop(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "they are gone")


def get(port: int, path: str) -> tuple[int, str]:
    """Returns the status and the text of an answer of `/metrics` or of a check."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def series(text: str, name: str) -> dict[str, float]:
    """Returns the values of a metric by process."""
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels["process"]: sample.value for sample in samples}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, int]]:
    """A worker on two devices that is ready, and the port of its metrics. Each test leaves it as it was."""
    port = free_port()
    with EmbeddedValkey() as valkey:
        stack = Stack(tmp_path_factory.mktemp("two"), valkey.url)
        try:
            worker = stack.start_worker(
                SAGITTAL_DEVICE="cpu,cpu", SAGITTAL_WORKER_NAME="box", SAGITTAL_METRICS_PORT=str(port)
            )
            wait_until(lambda: get(port, READY)[0] == HTTPStatus.OK, "both processes are ready")
            yield worker, port
        finally:
            stack.stop()


def test_one_endpoint_shows_the_metrics_of_every_process(two: tuple[Program, int]) -> None:
    _, port = two
    status, text = get(port, "/metrics")
    assert status == HTTPStatus.OK
    for name in ("sagittal_model_ready", "sagittal_process_up", "sagittal_model_loads_total"):
        assert {process for process, value in series(text, name).items() if value == 1} == {"0", "1"}, name
    assert text.count("# TYPE sagittal_model_ready gauge") == 1


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_makes_the_whole_fail_its_liveness(two: tuple[Program, int], stopped: int) -> None:
    worker, port = two
    assert get(port, LIVE)[0] == HTTPStatus.OK
    process = children(worker.process.pid)[stopped]
    os.kill(process, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as threads:  # each answer waits for the process for a while
            live, ready, metrics = threads.map(lambda path: get(port, path), (LIVE, READY, "/metrics"))
        assert live[0] == ready[0] == HTTPStatus.SERVICE_UNAVAILABLE
        assert f"process {stopped} on cpu: does not answer" in live[1]
        assert series(metrics[1], "sagittal_process_up") == {str(stopped): 0, str(1 - stopped): 1}
    finally:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: get(port, LIVE)[0] == HTTPStatus.OK, "it answers again")


def test_a_signal_that_comes_while_the_processes_start_ends_them(private_stack: Stack) -> None:
    worker = private_stack.start_worker(SAGITTAL_DEVICE="cpu,cpu")
    wait_until(lambda: "workers-started" in worker.text, "the processes are started")
    begun = children(worker.process.pid)
    # 143 is the status of a program that had no handler of its own yet
    assert worker.stop() in {0, 128 + signal.SIGTERM}
    assert "workers-stopped" in worker.text
    assert not any(Path(f"/proc/{pid}").exists() for pid in begun)


def test_a_port_of_metrics_that_is_taken_is_named_before_anything_starts(private_stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        worker = private_stack.start_worker(SAGITTAL_DEVICE="cpu,cpu", SAGITTAL_METRICS_PORT=port)
        assert worker.process.wait(PATIENCE) == USAGE
    assert "workers-started" not in worker.text
    assert "in use" in worker.text


def test_a_wish_names_devices() -> None:
    assert named_devices("") == []
    assert named_devices("cpu") == ["cpu"]
    assert named_devices("cuda:0, cuda:1,") == ["cuda:0", "cuda:1"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there are GPUs")
def test_every_gpu_of_none_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="there is none"):
        named_devices("cuda:*")
