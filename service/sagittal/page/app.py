"""The ASGI application: the files of the page, the API, and their security headers."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import grpc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagittal.page.gateway import Gateway
from sagittal.page.metrics import Metrics
from sagittal.page.reports import Reports
from sagittal.page.settings import PageSettings
from sagittal.v1 import batch_service_pb2, concept_service_pb2, explanation_service_pb2, model_service_pb2

#: Sources from which a browser may load: only this origin, and images that the page itself created.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    b"content-security-policy": CONTENT_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
}

#: Request headers that pages of other origins may send, and response headers that they may read.
_SENT = (
    "authorization",
    "content-type",
    "connect-protocol-version",
    "connect-timeout-ms",
    "grpc-timeout",
    "x-grpc-web",
)
_READ = ("grpc-status", "grpc-message", "grpc-status-details-bin")

_SERVICES = tuple(
    service
    for module in (explanation_service_pb2, batch_service_pb2, model_service_pb2, concept_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


class SafeHeaders:
    """Adds security headers to every response, which restrict a browser to this origin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in HEADERS.items() if name not in known]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, sending)


def make_app(channel: grpc.aio.Channel, settings: PageSettings) -> Starlette:
    """Returns the application: `/` is the page, `/sagittal.v1.*` the API, `/livez` a probe.

    `/reports/JOB` is the report of a job, and `/metrics.json` has the metrics of the system.
    """
    gateway = Gateway(channel, token_header=settings.token_header)
    applications = [gateway.application(service, max_bytes=settings.max_message_bytes) for service in _SERVICES]
    return Starlette(
        routes=[
            Route("/", _index),
            Route("/livez", _live),
            Route("/reports/{job}", Reports(channel, token_header=settings.token_header).report),
            Route("/metrics.json", Metrics(channel, settings.metrics, token_header=settings.token_header).metrics),
            *(Mount(each.path, _WithFullPath(each)) for each in applications),
            Mount("/", StaticFiles(directory=files(), html=False)),
        ],
        middleware=[Middleware(SafeHeaders), *_cors(settings.origins)],
    )


def files() -> Path:
    """Returns the directory of the built page."""
    return Path(str(resources.files("sagittal.page") / "built"))


class _WithFullPath:
    """An application that gets the full path although it is mounted at a prefix."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "root_path": ""}, receive, send)


def _cors(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=list(_SENT),
            expose_headers=list(_READ),
            max_age=7200,
        )
    ]


async def _index(_request: Request) -> Response:
    return FileResponse(files() / "index.html", headers={"cache-control": "no-cache"})


async def _live(_request: Request) -> Response:
    return PlainTextResponse("ok\n")
