"""One endpoint for the worker processes of several devices: all their metrics, and probes that each of them answers."""

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

#: Time that a process has to answer, in seconds: less than the time that the chart gives a probe.
PATIENCE = 4.0

#: The label that tells the series of the processes apart: their number, from 0.
PROCESS = "process"


class NoAnswer(Exception):
    """A process did not answer, or not as it should; the message says what it does."""


@dataclass(frozen=True, slots=True)
class ProcessEndpoint:
    """Where one process answers scrapes and probes, on this machine."""

    index: int
    device: str
    port: int

    def get(self, path: str) -> str:
        """Returns what the process answers. Raises NoAnswer."""
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
        """Returns what is wrong with the process by one of its checks; empty if nothing is."""
        try:
            wrong = str(json.loads(self.get(path))["reason"])
        except NoAnswer as error:
            wrong = str(error)
        return f"process {self.index} on {self.device}: {wrong}" if wrong else ""

    def families(self) -> Sequence[Metric]:
        """Returns the metrics of the process, each series with its number. Raises NoAnswer."""
        families = list(text_string_to_metric_families(self.get("/metrics")))
        for family in families:
            numbered = [s._replace(labels={**s.labels, PROCESS: str(self.index)}) for s in family.samples]
            family.samples = numbered
        return families


class ProcessMetrics(Collector):
    """Collects the metrics of all processes when it is scraped, and whether each of them answered."""

    def __init__(self, registry: CollectorRegistry, endpoints: Sequence[ProcessEndpoint]) -> None:
        self._endpoints = endpoints
        registry.register(self)
        self._up = process_up(registry)  # after the collector, so that a scrape shows what it has just found

    def describe(self) -> Sequence[Metric]:
        """Returns nothing: what the processes show is known when they are asked."""
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
    text = "1 while a process of a worker with several devices answers, else 0."
    return Gauge("sagittal_process_up", text, [PROCESS, "device"], registry=registry)


def serve_process_metrics(listener: socket.socket, endpoints: Sequence[ProcessEndpoint]) -> MetricsServer:
    """Serves the metrics and the checks of all processes: live, or ready, if each of them is."""
    registry = CollectorRegistry()
    ProcessMetrics(registry, endpoints)

    def check(path: str) -> Callable[[], str]:
        return lambda: "; ".join(filter(None, ask_all(endpoints, lambda endpoint: endpoint.check(path))))

    return serve_metrics(listener, registry, {path: check(path) for path in (LIVE, READY)})


def ask_all(endpoints: Sequence[ProcessEndpoint], ask: Callable[[ProcessEndpoint], T]) -> Sequence[T]:
    """Asks all processes at the same time, so that those that do not answer cost the time of one."""
    with ThreadPoolExecutor(max(1, len(endpoints))) as pool:
        return list(pool.map(ask, endpoints))


def _families(endpoint: ProcessEndpoint) -> Sequence[Metric] | None:
    try:
        return endpoint.families()
    except NoAnswer:
        return None
