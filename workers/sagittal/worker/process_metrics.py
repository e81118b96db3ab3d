"""One endpoint for the worker processes of several devices: merged metrics, and probes that each process answers."""

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sagittal.process.probes import LIVE, READY, MetricsServer, serve_metrics

T = TypeVar("T")

#: Timeout of a process's answer, in seconds; shorter than the probe timeout in the chart.
PATIENCE = 4.0

#: Label that distinguishes the series of the processes: their index, from 0.
PROCESS = "process"


class NoAnswer(Exception):
    """A process did not answer, or answered with an error; the message describes it."""


@dataclass(frozen=True, slots=True)
class ProcessEndpoint:
    """Local endpoint of one process for scrapes and probes."""

    index: int
    device: str
    port: int

    def get(self, path: str) -> str:
        """Returns the answer of the process. Raises NoAnswer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except TimeoutError as error:
            raise NoAnswer(f"does not answer within {PATIENCE:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status not in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise NoAnswer(f"answers {path} with {answer.status}")
        return text

    def check(self, path: str) -> str:
        """Returns the fault of the process that a check reports; empty if there is none."""
        try:
            wrong = str(json.loads(self.get(path))["reason"])
        except NoAnswer as error:
            wrong = str(error)
        return f"process {self.index} on {self.device}: {wrong}" if wrong else ""

    def families(self) -> Sequence[Metric]:
        """Returns the metrics of the process, each series with its index. Raises NoAnswer."""
        families = list(text_string_to_metric_families(self.get("/metrics")))
        for family in families:
            numbered = [s._replace(labels={**s.labels, PROCESS: str(self.index)}) for s in family.samples]
            family.samples = numbered
        return families


class ProcessMetrics(Collector):
    """Collects the metrics of all processes at each scrape, and whether each of them answered."""

    def __init__(self, registry: CollectorRegistry, endpoints: Sequence[ProcessEndpoint]) -> None:
        self._endpoints = endpoints
        registry.register(self)
        self._up = process_up(registry)  # registered after the collector, so that a scrape shows its new values

    def describe(self) -> Sequence[Metric]:
        """Returns nothing: the metrics are known only when the processes are scraped."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yields each metric once, with the series of all processes."""
        merged: dict[str, Metric] = {}
        for endpoint, families in zip(self._endpoints, ask_all(self._endpoints, _families), strict=True):
            self._up.labels(str(endpoint.index), endpoint.device).set(float(families is not None))
            for family in families or ():
                merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged[family.name].samples.extend(family.samples)
        yield from merged.values()


def process_up(registry: CollectorRegistry) -> Gauge:
    """Registers the metric that shows which processes answer."""
    text = "1 while a process of a worker with several devices answers, otherwise 0."
    return Gauge("sagittal_process_up", text, [PROCESS, "device"], registry=registry)


def serve_process_metrics(listener: socket.socket, endpoints: Sequence[ProcessEndpoint]) -> MetricsServer:
    """Serves the metrics of all processes, and the checks `live` and `ready`, which pass if all processes pass."""
    registry = CollectorRegistry()
    ProcessMetrics(registry, endpoints)

    def check(path: str) -> Callable[[], str]:
        return lambda: "; ".join(filter(None, ask_all(endpoints, lambda endpoint: endpoint.check(path))))

    return serve_metrics(listener, registry, {path: check(path) for path in (LIVE, READY)})


def ask_all(endpoints: Sequence[ProcessEndpoint], ask: Callable[[ProcessEndpoint], T]) -> Sequence[T]:
    """Queries all processes concurrently, so that the timeouts of several take the time of one."""
    with ThreadPoolExecutor(max(1, len(endpoints))) as pool:
        return list(pool.map(ask, endpoints))


def _families(endpoint: ProcessEndpoint) -> Sequence[Metric] | None:
    try:
        return endpoint.families()
    except NoAnswer:
        return None
