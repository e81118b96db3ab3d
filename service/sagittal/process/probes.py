"""`/metrics`, `/livez` and `/readyz` over HTTP, for Prometheus and for probes that support neither TLS nor gRPC."""

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from threading import Event, Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, make_wsgi_app

from sagittal.process.supervision import Supervised, Supervisor

Check = Callable[[], str]
"""Returns what is wrong; empty if nothing is."""

#: Paths of the liveness check (restart the process if it fails) and the readiness check (send no work if it fails).
LIVE, READY = "/livez", "/readyz"

#: Simultaneous connections, one thread each.
MAX_CONNECTIONS = 32

#: Connections that wait to be accepted. The kernel ignores further ones, whose clients try again only after seconds.
BACKLOG = 1024

#: Longest time that a connection may be silent, in seconds.
SECONDS = 5.0


class _Server(ThreadingMixIn, WSGIServer):
    """A server with a bounded number of connections and a thread for each, so that a slow scrape delays no probe.

    If all connections are taken, a new one replaces the oldest that has not sent its request. So a client that connects
    and sends its request is answered, even if many others connect and send nothing.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, app: Callable[..., Any]) -> None:
        """Serves on a listening socket and closes it at the end."""
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_name, self.server_port = listener, host, port
        self.setup_environ()
        self.set_app(app)
        self._lock = Lock()
        self._open: dict[socket.socket, bool] = {}
        """Connections, oldest first; True if the request has arrived."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Returns whether there is room for a new connection, and registers it."""
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next((each for each, asked in self._open.items() if not asked), None)
                if oldest is None:
                    return False
                del self._open[oldest]
                with suppress(OSError):  # its thread then ends
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = False
            return True

    def asked(self, request: socket.socket) -> None:
        """Marks a connection whose request has arrived; it is kept until it is answered."""
        with self._lock:
            if request in self._open:
                self._open[request] = True

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: a connection that broke or timed out concerns only its client."""


class _Handler(WSGIRequestHandler):
    """Handles one request in bounded time. Does not log, because probes arrive every few seconds."""

    timeout = SECONDS
    server: _Server

    def get_environ(self) -> dict[str, Any]:
        """Returns the environment of a request whose headers have arrived."""
        self.server.asked(self.connection)
        return super().get_environ()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Logs nothing."""


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running server for metrics and probes."""

    server: WSGIServer
    serving: Supervised
    closing: Event

    @property
    def port(self) -> int:
        """TCP port on which it listens."""
        return int(self.server.server_port)

    def close(self) -> None:
        """Stops the server."""
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
    """Serves the registry's metrics, without `_created` series, and the checks; port 0 takes a free port.

    Raises:
        OSError: the address is not available.
    """
    return serve_metrics(listen(host, port), registry, checks, supervisor)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket for scrapes and probes. Raises OSError if the address is not available."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    both = family == socket.AF_INET6  # `::` also accepts IPv4
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def serve_metrics(
    listener: socket.socket,
    registry: CollectorRegistry,
    checks: Mapping[str, Check] | None = None,
    supervisor: Supervisor | None = None,
) -> MetricsServer:
    """Serves metrics and checks as `start_metrics_server` does, on an existing listening socket."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # not annotated in the library
    server = _Server(listener, _application(make_wsgi_app(registry), checks or {}))
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
