"""A connection to Sagittal: its channel, and calls that are repeated while the service is unavailable."""

from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from sagittal.client.aio.concurrency import ChannelClosed, UnaryCall, off_the_loop, open_channel, sleep
from sagittal.client.base import BaseClient
from sagittal.client.diagnosis import diagnosed
from sagittal.client.errors import ConnectionFailed, Unavailable, from_rpc_error
from sagittal.client.options import TLS, Options
from sagittal.client.resume import Patience
from sagittal.client.tracing import Metadata
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc
from sagittal.v1 import model_service_pb2_grpc as models_grpc

Answer = TypeVar("Answer")


class AsyncConnection(BaseClient):
    """A channel to Sagittal, with one way to make a call; close it, or use it in an `async with` statement."""

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        token: str = "",
        tls: TLS | None = None,
        options: Options | None = None,
    ) -> None:
        """Prepares a connection, which is opened when it is first needed.

        Args:
            address: Host and port (50051 by default), or a `unix:` path.
            token: Bearer token; empty sends none.
            tls: TLS settings; None for an unencrypted connection.
            options: Limits and retries.
        """
        super().__init__(address, token=token, tls=tls, options=options)
        self._channel = open_channel(self.address, tls, self.options.channel_arguments(tls))
        self._jobs = service_grpc.ExplanationServiceStub(self._channel)
        self._models = models_grpc.ModelServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: UnaryCall[Answer], request: Message, *, patience: Patience | None = None) -> Answer:
        """Makes an idempotent call, and retries it while the service is unavailable."""
        with self._span(request) as span:
            metadata = self._metadata + span.metadata
            return await self._repeat(method, request, metadata, patience or self._call_patience())

    async def _repeat(
        self, method: UnaryCall[Answer], request: Message, metadata: Metadata, patience: Patience
    ) -> Answer:
        while True:
            try:
                return await method(request, timeout=self.options.timeout, metadata=metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error, address=self.address)
                if not isinstance(failure, Unavailable):
                    raise failure from error
                wait = await self._wait_after(patience, failure)
            except ChannelClosed as error:
                raise ConnectionFailed("this client is closed; make another") from error
            await sleep(wait)

    async def _wait_after(self, patience: Patience, failure: Unavailable) -> float:
        try:
            return patience.wait_after(failure)
        except ConnectionFailed as error:
            raise await off_the_loop(diagnosed, error, self.address, self._tls) from error.__cause__
