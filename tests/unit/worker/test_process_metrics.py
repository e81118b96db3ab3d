import socket
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sagittal.process.probes import LIVE, READY, start_metrics_server
from sagittal.worker import process_metrics
from sagittal.worker.process_metrics import ProcessEndpoint, ProcessMetrics

Start = Callable[..., ProcessEndpoint]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the endpoint of a process, with a gauge, a counter and a histogram."""
    servers = []

    def started(index: int, *, wrong: str = "") -> ProcessEndpoint:
        registry = CollectorRegistry()
        Gauge("sagittal_ready", "Ready.", ["model"], registry=registry).labels('a"b').set(index)
        Counter("sagittal_jobs", "Jobs.", registry=registry).inc(index + 1)
        Histogram("sagittal_run_seconds", "Runs.", buckets=(1, 2), registry=registry).observe(index)
        server = start_metrics_server("127.0.0.1", 0, registry, {LIVE: lambda: wrong, READY: lambda: ""})
        servers.append(server)
        return ProcessEndpoint(index, "cpu", server.port)

    yield started
    for server in servers:
        server.close()


@pytest.fixture
def silent() -> Iterator[ProcessEndpoint]:
    """A process that is stopped: its socket takes connections, and nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield ProcessEndpoint(1, "cuda:1", listener.getsockname()[1])


@pytest.fixture
def gone() -> ProcessEndpoint:
    """A process that has ended: its port refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return ProcessEndpoint(1, "cuda:1", port)


def scrape(endpoints: list[ProcessEndpoint]) -> str:
    registry = CollectorRegistry()
    ProcessMetrics(registry, endpoints)
    return generate_latest(registry).decode()


def test_every_series_is_shown_once_for_each_process(start: Start) -> None:
    text = scrape([start(0), start(1)])
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for index in range(2):
        process = ("process", str(index))
        assert samples["sagittal_ready", ("model", 'a"b'), process] == index
        assert samples["sagittal_jobs_total", process] == index + 1
        assert samples["sagittal_run_seconds_count", process] == 1
        assert samples["sagittal_run_seconds_bucket", ("le", "1.0"), process] == 1
        assert samples["sagittal_process_up", ("device", "cpu"), process] == 1
    for name, kind in (("ready", "gauge"), ("jobs_total", "counter"), ("run_seconds", "histogram")):
        assert text.count(f"# TYPE sagittal_{name} {kind}\n") == 1


def test_a_process_that_does_not_answer_hides_none_of_the_others(start: Start, silent, monkeypatch) -> None:
    monkeypatch.setattr(process_metrics, "PATIENCE", 0.2)
    text = scrape([start(0), silent])
    assert 'sagittal_process_up{device="cpu",process="0"} 1.0' in text
    assert 'sagittal_process_up{device="cuda:1",process="1"} 0.0' in text
    assert 'sagittal_jobs_total{process="0"} 1.0' in text


def test_what_is_wrong_is_told_with_the_process_and_its_device(start: Start, silent, gone, monkeypatch) -> None:
    monkeypatch.setattr(process_metrics, "PATIENCE", 0.2)
    assert start(0).check(LIVE) == ""
    assert start(0, wrong="a step hangs").check(LIVE) == "process 0 on cpu: a step hangs"
    assert silent.check(LIVE) == "process 1 on cuda:1: does not answer within 0.2 s"
    assert gone.check(LIVE).startswith("process 1 on cuda:1: does not answer: ")
