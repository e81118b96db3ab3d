"""The HTTP endpoint of metrics and probes holds a bounded number of threads, and answers whoever asks."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from sagittal.process.probes import LIVE, MAX_CONNECTIONS, MetricsServer, start_metrics_server


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("sagittal_things", "Things.", registry=registry).inc()
    Histogram("sagittal_times", "Times.", registry=registry).observe(1.0)
    server = start_metrics_server("127.0.0.1", 0, registry, {LIVE: lambda: ""})
    yield server
    server.close()


def asked(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse().read()
    connection.close()
    return answer


@pytest.mark.parametrize("said", [b"", b"GET /livez HTT", b"GET /livez HTTP/1.1\r\nHost: here\r\n"])
def test_connections_that_ask_nothing_hold_few_threads_and_stop_no_probe(server: MetricsServer, said: bytes) -> None:
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(10 * MAX_CONNECTIONS)]
    try:
        for connection in idle:
            try:
                connection.sendall(said)
            except OSError:
                continue  # it made room already
        assert json.loads(asked(server.port, LIVE)) == {"ok": True, "reason": ""}
        # the threads of connections that made room end at once, but not before they are scheduled
        for _ in range(3000):
            if (held := threading.active_count() - before) <= MAX_CONNECTIONS:
                break
            threading.Event().wait(0.01)
        assert held <= MAX_CONNECTIONS
    finally:
        for connection in idle:
            connection.close()


def test_a_connection_that_says_nothing_is_closed(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.server.RequestHandlerClass, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        assert connection.recv(1) == b""


def test_a_scrape_has_no_created_series(server: MetricsServer) -> None:
    page = asked(server.port, "/metrics").decode()
    assert "sagittal_things_total 1.0" in page
    assert "_created" not in page
