"""The HTTP server of the page: HTTP/1.1 and HTTP/2 in the running event loop, with limits and a drain."""

import asyncio
import socket
from typing import Any

import structlog
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from granian.constants import Interfaces, SSLProtocols
from granian.server.embed import Server
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagittal.page.settings import PageSettings

#: Connections for each request that is allowed at the same time: a browser keeps some open without a request.
CONNECTIONS_PER_CALL = 4

#: Connections that may wait until they are accepted.
BACKLOG = 1024

#: Longest wait until the server accepts connections, and between two attempts to connect, in seconds.
_START_SECONDS, _RETRY_SECONDS = 30.0, 0.01

_log = structlog.get_logger(__name__)


class CannotListen(OSError):
    """The page's address is not available."""


class ServerEnded(RuntimeError):
    """The HTTP server ended, although nobody stopped it."""


class Limits:
    """Limits the requests at the same time (503 beyond) and the bytes of their bodies (429 beyond)."""

    def __init__(self, app: ASGIApp, *, calls: int, body_bytes: int) -> None:
        self._app = app
        self._calls = calls
        self._body_bytes = body_bytes
        self._used = 0
        self._open: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        task = asyncio.current_task()
        if task is None or self._draining or len(self._open) >= self._calls:
            await self._refuse(scope, receive, send)
            return
        self._open.add(task)
        held, started = 0, False

        async def receiving() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            if size and self._used + size > self._body_bytes:
                raise ConnectError(Code.RESOURCE_EXHAUSTED, "the requests at this moment are too large: try again")
            self._used += size
            held += size
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        except Exception:  # noqa: BLE001 - the server would not report it
            _log.exception("request-failed", path=scope.get("path"))
            if not started:
                await PlainTextResponse("the page failed; its log has the reason\n", 500)(scope, receive, send)
        finally:
            self._used -= held
            self._open.discard(task)

    async def drain(self, seconds: float) -> None:
        """Refuses further requests, waits until the open ones have ended, and cancels those that take longer."""
        self._draining = True
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=seconds)
        for task in (left := tuple(self._open)):
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = "the page is stopping" if self._draining else "too many requests at the same time"
        await PlainTextResponse(f"{why}: try again\n", 503, headers={"retry-after": "1"})(scope, receive, send)


class HttpServer:
    """Serves an application in the running event loop."""

    def __init__(self, app: ASGIApp, settings: PageSettings) -> None:
        """Stores the arguments; `start` listens."""
        self._settings = settings
        self._limits = Limits(app, calls=settings.max_calls, body_bytes=settings.max_body_bytes)
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Returns the port when connections are accepted.

        Raises:
            CannotListen: the address is not available, or the certificate cannot be used.
        """
        host, port = self._settings.listen_host, _free(self._settings.listen_host, self._settings.listen_port)
        certificate, key = self._settings.certificate, self._settings.key
        try:
            self._server = Server(
                self._limits,
                address=host,
                port=port,
                interface=Interfaces.ASGINL,
                websockets=False,
                backlog=BACKLOG,
                backpressure=CONNECTIONS_PER_CALL * self._settings.max_calls,
                ssl_cert=certificate,
                ssl_key=key,
                ssl_protocol_min=SSLProtocols.tls12,
                log_enabled=False,
            )
        except Exception as error:
            raise CannotListen(f"cannot use the certificate {certificate} with the key {key}: {error}") from error
        self._serving = asyncio.create_task(self._server.serve())
        await self._accepts(host, port)
        return port

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises ServerEnded if the server ends before, so that the process ends too."""
        serving = self._serving
        if serving is None:
            raise ServerEnded("the HTTP server of the page was not started")
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            stopped.cancel()
            raise ServerEnded("the HTTP server of the page ended") from serving.exception()

    async def stop(self) -> None:
        """Drains, and stops listening."""
        await self._limits.drain(self._settings.drain)
        if self._server is not None and self._serving is not None:
            self._server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({self._serving})

    async def _accepts(self, host: str, port: int) -> None:
        """Returns when a connection is accepted. Raises CannotListen."""
        serving = self._serving
        async with asyncio.timeout(_START_SECONDS):
            while serving is not None and not serving.done():
                try:
                    _, writer = await asyncio.open_connection(_reachable(host), port)
                except OSError:
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                writer.close()
                return
        error = serving.exception() if serving is not None else None
        raise CannotListen(f"cannot listen on {host}:{port}: {str(error).partition(chr(10))[0]}")


def _free(host: str, port: int) -> int:
    """Returns the port, or a free one for 0. Raises CannotListen if it is in use: the server would share it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        text = f"cannot listen on {host}:{port}: {error.strerror}; set SAGITTAL_PAGE_LISTEN_PORT to a free port"
        raise CannotListen(text) from error


def _reachable(host: str) -> str:
    """Returns an address at which this process reaches a server that listens on a host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
