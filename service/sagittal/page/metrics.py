"""The metrics of service and workers for the page's view of the system, for callers whom the service knows."""

import asyncio
import time
import urllib.request
from collections.abc import Sequence

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sagittal.page.gateway import error_response, forwarded_metadata
from sagittal.v1 import model_service_pb2, model_service_pb2_grpc

#: Time to read one source, and for how long what was read is served again, in seconds.
_READ_SECONDS, _FRESH_SECONDS = 5.0, 1.0

#: Largest source that is read, in bytes.
_MAX_BYTES = 16 * 1024 * 1024

Source = dict[str, str]


class Metrics:
    """Serves the metrics of the sources in the settings, as they export them."""

    def __init__(self, channel: grpc.aio.Channel, urls: Sequence[str], *, token_header: str = "") -> None:
        """Stores the arguments.

        Args:
            channel: Channel to the service, which knows the callers.
            urls: Addresses of the metrics.
            token_header: As for `Gateway`.
        """
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._urls = urls
        self._token_header = token_header.lower()
        self._reading = asyncio.Lock()
        self._read: list[Source] = []
        self._read_at = float("-inf")

    async def metrics(self, request: Request) -> Response:
        """Returns the text of each source, or why it could not be read; the service's error for unknown callers."""
        metadata = forwarded_metadata(request.headers, self._token_header)
        try:
            asked = model_service_pb2.ListModelsRequest(page_size=1)
            await self._models.ListModels(asked, metadata=metadata, timeout=_READ_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error_response(error)
        if not self._urls:
            return PlainTextResponse("no metrics are configured: set SAGITTAL_PAGE_METRICS", 404)
        async with self._reading:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._read = await asyncio.gather(*(asyncio.to_thread(_read, url) for url in self._urls))
                self._read_at = time.monotonic()
            return JSONResponse({"sources": self._read}, headers={"cache-control": "no-store"})


def _read(url: str) -> Source:
    try:
        with urllib.request.urlopen(url, timeout=_READ_SECONDS) as answer:  # noqa: S310 - an address of the settings
            return {"text": answer.read(_MAX_BYTES).decode(errors="replace")}
    except OSError as error:
        return {"error": str(getattr(error, "reason", error))}
