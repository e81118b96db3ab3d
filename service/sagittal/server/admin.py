"""A second listener for whoever runs the service: health without TLS, and channelz, which tells of every connection."""

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from sagittal.server.endpoint import bind, open_addresses
from sagittal.server.settings import TlsSettings

_SERVICES = ("grpc.health.v1.Health", "grpc.channelz.v1.Channelz", reflection.SERVICE_NAME)

_log = structlog.get_logger(__name__)


class Admin:
    """Serves health and channelz in the clear and without tokens; nothing of the API."""

    def __init__(self, health: health_aio.HealthServicer) -> None:
        self._health = health
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> int:
        """Begins to serve and returns the port.

        Raises:
            CannotListen: the address cannot be had.
        """
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection(_SERVICES, self._server)
        (port,) = bind(self._server, (address,), TlsSettings())
        await self._server.start()
        if open_addresses((address,)):
            _log.warning("admin-open-to-the-network", listen=address, remedy="listen on 127.0.0.1: callers show in it")
        _log.info("admin-started", listen=address, port=port)
        return port

    async def stop(self) -> None:
        """Ends at once: what asks here asks again."""
        if self._server is not None:
            await self._server.stop(None)
