"""`sagittal-page`: serves the page and the API for browsers until SIGTERM, then drains and exits with 0."""

import asyncio
import sys

import grpc
import structlog

from sagittal.page.app import make_app
from sagittal.page.http import CannotListen, HttpServer, ServerEnded
from sagittal.page.settings import PageSettings
from sagittal.process.logs import configure_logging
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.process.starting import STOPPING

#: Exit codes: stopped on request; the HTTP server failed; invalid setting; address not available.
EXIT_OK, EXIT_FAILED, EXIT_SETTINGS, EXIT_ADDRESS = 0, 1, 2, 3

_log = structlog.get_logger(__name__)


def main() -> int:
    """Runs the page and returns its exit code."""
    try:
        settings = read_settings(PageSettings)
    except UnusableSettings as error:
        sys.stderr.write(f"sagittal-page: {error}\n")
        return EXIT_SETTINGS
    configure_logging(settings.log_format, settings.log_level)
    try:
        asyncio.run(serve(settings))
    except CannotListen as error:
        _log.error("page-cannot-start", error=str(error))
        return EXIT_ADDRESS
    except ServerEnded:
        _log.exception("page-ended")
        return EXIT_FAILED
    return EXIT_OK


async def serve(settings: PageSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises CannotListen or ServerEnded."""
    stop = asyncio.Event()
    for number in STOPPING:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_channel(settings) as channel:
        server = HttpServer(make_app(channel, settings), settings)
        await server.start()
        _log.info("page-started", listen=f"{settings.listen_host}:{settings.listen_port}", service=settings.address)
        await server.serve_until(stop)
        await server.stop()
        _log.info("page-stopped")


def open_channel(settings: PageSettings) -> grpc.aio.Channel:
    """Returns a channel to the service."""
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.lb_policy_name", "round_robin"),
    ]
    if settings.ca is None:
        return grpc.aio.insecure_channel(settings.address, options)
    credentials = grpc.ssl_channel_credentials(settings.ca.read_bytes())
    return grpc.aio.secure_channel(settings.address, credentials, options)


if __name__ == "__main__":
    sys.exit(main())
