"""`/metrics`, `/livez` and `/readyz` over HTTP: for Prometheus, and for probes that speak neither TLS nor gRPC."""

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from threading import Event
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from sagittal.runtime.supervision import Supervised, Supervisor

Check = Callable[[], str]
"""Returns what is wrong; empty where nothing is."""

#: Paths of the checks: whether to restart the process, and whether to send it work.
LIVE, READY = "/livez", "/readyz"


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, so that a slow scrape holds up no probe."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs nothing: probes come every few seconds."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Says nothing."""


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running endpoint."""

    server: WSGIServer
    serving: Supervised
    closing: Event

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return int(self.server.server_port)

    def close(self) -> None:
        """Stops listening."""
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        if self.serving.thread is not None:
            self.serving.thread.join()


def start_metrics_server(
    host: str,
    port: int,
    registry: CollectorRegistry = REGISTRY,
    checks: Mapping[str, Check] | None = None,
    supervisor: Supervisor | None = None,
) -> MetricsServer:
    """Serves the registry's metrics and the checks; port 0 takes a free one.

    Raises:
        OSError: the address cannot be had.
    """
    app = _application(make_wsgi_app(registry), checks or {})
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server_class = type("_FamilyServer", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(host, port, app, server_class=server_class, handler_class=_Quiet)
    closing = Event()
    serving = (supervisor or Supervisor()).start_thread("metrics", server.serve_forever, may_end=closing.is_set)
    return MetricsServer(server, serving, closing)


def _application(metrics: Callable[..., Any], checks: Mapping[str, Check]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            found: Iterable[bytes] = metrics(environ, start)
            return found
        wrong = check()
        status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
        start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps({"ok": not wrong, "reason": wrong}).encode() + b"\n"]

    return answer
