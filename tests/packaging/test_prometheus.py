"""A real Prometheus scrapes a real service and a real worker, and answers every query of alerts and dashboard."""

import itertools
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from e2e_stack import Stack, free_port, wait_until
from packaging_support import CHART, dashboard_queries, missing
from PIL import Image

from sagittal.client import Client, IGOSPlusPlus
from sagittal.process.embedded import EmbeddedValkey

Ask = Callable[[str], Any]

#: Counters that have no series before the first refusal, or the first caller who goes away.
QUIET = (
    "sagittal_jobs_rejected_total",
    "sagittal_jobs_dropped_total",
    "sagittal_answers_shared_total",
    "sagittal_redis_failures_total",
    "sagittal_quarantined_records_total",
    'code="CANCELLED"',
    "DCGM_FI_",  # of dcgm-exporter
)
#: Panels that show nothing in an installation where nothing has gone wrong, or no exporter runs.
SILENT = {"Cancellation to idle, 95 %", "Redis memory", "Baseline does not hide the class"}

#: Grey values of the images that are explained.
SHADES = itertools.count()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with EmbeddedValkey() as valkey:
        installation = Stack(tmp_path_factory.mktemp("stack"), valkey.url)
        try:
            yield installation
        finally:
            installation.stop()


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Where the programs show their metrics."""
    return {"service": free_port(), "worker": free_port()}


@pytest.fixture(scope="module")
def ask(stack: Stack, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks a Prometheus that has scraped service and worker, before and after a job."""
    binary = shutil.which("prometheus")
    if binary is None:
        missing("prometheus is not installed: apt-get install prometheus", package="prometheus")
    stack.start_service(SAGITTAL_METRICS_PORT=str(ports["service"]))
    stack.start_worker(SAGITTAL_METRICS_PORT=str(ports["worker"]))
    stack.wait_for_model("left")
    directory, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (directory / "prometheus.yml").write_text(configuration(ports))
    command = [
        str(binary),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}/api/v1"
        wait_until(lambda: scraped(address), "two targets that are scraped")
        explain(stack)
        wait_until(lambda: value(address, 'sum(sagittal_jobs_total{state="completed"})') >= 1, "the job in Prometheus")
        explain(stack)
        wait_until(
            lambda: value(address, 'sum(rate(sagittal_jobs_total{state="completed"}[5m]))') > 0, "a rate of jobs"
        )
        for name in ("sagittal_jobs_accepted_total", "sagittal_first_event_seconds_count"):
            wait_until(lambda name=name: result(address, f"rate({name}[5m])"), f"a rate of {name}")
        yield lambda query: result(address, query)
    finally:
        process.terminate()
        process.wait(30)


def configuration(ports: dict[str, int]) -> str:
    """Returns a configuration that scrapes as the Prometheus operator would, but more often."""
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "n", "pod": name}} for name, port in ports.items()
    ]
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
            "rule_files": [str(CHART / "files" / "alerts.yaml")],
            "scrape_configs": [{"job_name": "sagittal", "static_configs": targets}],
        }
    )


def explain(stack: Stack) -> None:
    # another picture each time, or the answer would come from the cache
    picture = np.full((56, 56, 3), next(SHADES), np.uint8)
    picture[:, :28] = 255
    with Client(stack.address) as client:
        client.explain(Image.fromarray(picture), model="left", method=IGOSPlusPlus(mask_size=7, iterations=3, points=2))


def result(address: str, query: str) -> Any:
    url = f"{address}/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own, on this machine
        found = json.load(answer)
    assert found["status"] == "success"
    return found["data"]["result"]


def value(address: str, query: str) -> float:
    found = result(address, query)
    return float(found[0]["value"][1]) if found else 0.0


def scraped(address: str) -> bool:
    try:
        return len(result(address, "up == 1")) == 2
    except OSError:
        return False


@pytest.mark.parametrize(("panel", "query"), list(dashboard_queries()))
def test_every_query_of_the_dashboard_is_answered(ask: Ask, panel: str, query: str) -> None:
    if panel in SILENT or any(name in query for name in QUIET):
        ask(query)
        return
    # a rate takes two scrapes after the series begins, and service and worker are not scraped at once
    wait_until(lambda: ask(query), f"a series for {query}")


def test_no_alert_fires_where_all_is_well(ask: Ask) -> None:
    assert ask('ALERTS{alertstate="firing"}') == []


def test_workers_are_scaled_to_zero_by_a_zero_and_not_by_silence(ask: Ask, render) -> None:
    scaled = [document for document in render("gpu-values.yaml") if document["kind"] == "ScaledObject"]
    query = scaled[0]["spec"]["triggers"][0]["metadata"]["query"].replace('namespace="ns"', 'namespace="n"')
    (sample,) = ask(query)
    assert float(sample["value"][1]) == 0
    # as if every replica had lost Redis, or Prometheus every replica
    assert ask(query.replace('namespace="n"', 'namespace="elsewhere"')) == []


@pytest.mark.parametrize("program", ["service", "worker"])
def test_the_charts_probes_find_a_ready_program(ask: Ask, render, ports, program: str) -> None:
    deployments = [d for d in render("locked-down-values.yaml") if d["kind"] == "Deployment"]
    (deployment,) = [d for d in deployments if d["metadata"]["labels"]["app.kubernetes.io/component"] == program]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "metrics"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[program]}{asked['path']}", timeout=10) as answer:
            assert json.load(answer) == {"ok": True, "reason": ""}
