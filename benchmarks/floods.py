"""Twelve floods by which a tenant tries to delay others: `python benchmarks/floods.py NAME ADDRESS JOB`.

The program floods from a line `go` on its standard input to a line `stop`, and then prints what it sent.
"""

import asyncio
import io
import itertools
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import grpc
import numpy as np
from answering_worker import MODEL
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from service_load import picture

from sagittal.v1 import concept_service_pb2, concept_service_pb2_grpc, explanation_pb2, tensor_pb2
from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import explanation_service_pb2_grpc as rpc

#: A model that is registered and that no worker has.
ABSENT = "absent"
#: Calls that a flood has under way at the same time, and watches that it holds open.
AT_ONCE, WATCHES = 64, 600
#: Bearer token of the tenant that floods.
TOKEN = "hostile"  # noqa: S105 - of a benchmark

METADATA = (("authorization", f"Bearer {TOKEN}"),)
PATIENCE = 30.0


@dataclass
class Flood:
    """The requests of a hostile tenant, repeated."""

    address: str
    job: str
    """A job of the tenant's own with a large log."""
    seeds: "itertools.count[int]" = field(default_factory=lambda: itertools.count(os.getpid() * 10**6))

    def __post_init__(self) -> None:
        """Opens one connection for all calls, but for the flood of connections."""
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = rpc.ExplanationServiceStub(self.channel)
        self.small = picture()
        self.wide = _saved(Image.effect_noise((3600, 3600), 60), "JPEG")
        self.bombs = itertools.cycle((_canvas(8000), _saved(Image.new("RGB", (3900, 3900)), "WEBP", lossless=True)))

    def spec(self, image: bytes, **changes: object) -> explanation_pb2.ExplanationSpec:
        """Returns a request that no other is equal to."""
        plain = {"model": MODEL, "seed": next(self.seeds), "image": tensor_pb2.Image(encoded=image)}
        return explanation_pb2.ExplanationSpec(**(plain | changes))

    async def submit(self, image: bytes, **changes: object) -> None:
        """Submits a job."""
        request = api.SubmitExplanationRequest(spec=self.spec(image, **changes))
        await self.stub.SubmitExplanation(request, metadata=METADATA, timeout=PATIENCE)

    async def small_jobs(self) -> None:
        """Sends small jobs."""
        await self.submit(self.small)

    async def large_images(self) -> None:
        """Sends images of 13 megapixels."""
        await self.submit(self.wide)

    async def decode_bombs(self) -> None:
        """Sends files of few bytes and 15 or 64 megapixels."""
        await self.submit(next(self.bombs))

    async def abandoned_uploads(self) -> None:
        """Uploads images for a fit, and leaves."""

        async def upload() -> AsyncIterator[concept_service_pb2.FitConceptsRequest]:
            yield concept_service_pb2.FitConceptsRequest(settings=concept_service_pb2.FitConceptsSettings(model=MODEL))
            for _ in range(20):
                yield concept_service_pb2.FitConceptsRequest(image=tensor_pb2.Image(encoded=self.small))
            await asyncio.sleep(0.2)
            raise asyncio.CancelledError

        stub = concept_service_pb2_grpc.ConceptServiceStub(self.channel)
        call = stub.FitConcepts(upload(), metadata=METADATA, timeout=PATIENCE)
        try:
            await asyncio.wait_for(call.read(), 0.3)
        except TimeoutError:
            call.cancel()

    async def held_watches(self) -> None:
        """Keeps streams of a waiting job open; when one ends, it opens another."""
        if not hasattr(self, "waits"):
            spec = self.spec(self.small, model=ABSENT)
            made = await self.stub.SubmitExplanation(api.SubmitExplanationRequest(spec=spec), metadata=METADATA)
            self.waits = made.explanation.job_id
        request = api.WatchExplanationRequest(job_id=self.waits)
        async for _ in self.stub.WatchExplanation(request, metadata=METADATA, timeout=2.0):
            pass

    async def large_logs(self) -> None:
        """Reads a log of 20 MB, page by page, and lists jobs."""
        request = api.GetExplanationRequest(job_id=self.job, page_size=1000)
        await self.stub.GetExplanation(request, metadata=METADATA, timeout=PATIENCE)
        await self.stub.ListExplanations(
            api.ListExplanationsRequest(page_size=1000), metadata=METADATA, timeout=PATIENCE
        )

    async def heavy_metrics(self) -> None:
        """Sends jobs with as many measures as a request may ask for."""
        metrics = explanation_pb2.Metrics(curve_steps=100)
        for place in range(20):
            metrics.boxes.add(left=place, right=place + 9, top=place, bottom=place + 9)
        await self.submit(self.small, metrics=metrics)

    async def wrong_tokens(self) -> None:
        """Guesses tokens."""
        guess = (("authorization", f"Bearer {next(self.seeds)}"),)
        await self.stub.ListExplanations(api.ListExplanationsRequest(), metadata=guess, timeout=PATIENCE)

    async def many_connections(self) -> None:
        """Opens a new connection for each call."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            stub = rpc.ExplanationServiceStub(channel)
            await stub.ListExplanations(api.ListExplanationsRequest(), metadata=METADATA, timeout=PATIENCE)

    async def absent_models(self) -> None:
        """Sends jobs of a day's deadline for a model without a worker."""
        await self.submit(self.small, model=ABSENT, deadline=duration_pb2.Duration(seconds=86_400))

    async def cancellations(self) -> None:
        """Asks for an explanation and leaves at once."""
        call = self.stub.Explain(api.ExplainRequest(spec=self.spec(self.small, model=ABSENT)), metadata=METADATA)
        try:
            await asyncio.wait_for(call.read(), 0.05)
        except TimeoutError:
            pass
        finally:
            call.cancel()

    async def health_and_reflection(self) -> None:
        """Asks for the health, and for the API's description."""
        await health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")] * 10
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        async for _ in stub.ServerReflectionInfo(iter(asked), metadata=METADATA, timeout=PATIENCE):
            pass


FLOODS: Mapping[str, Callable[[Flood], Awaitable[None]]] = {
    "many small jobs": Flood.small_jobs,
    "images of 13 megapixels": Flood.large_images,
    "decode bombs": Flood.decode_bombs,
    "uploads that are abandoned": Flood.abandoned_uploads,
    f"{WATCHES} watches held open": Flood.held_watches,
    "reading large logs and lists": Flood.large_logs,
    "jobs with many measures": Flood.heavy_metrics,
    "wrong tokens": Flood.wrong_tokens,
    "a connection for each call": Flood.many_connections,
    "a day's deadline on an absent model": Flood.absent_models,
    "explanations that are cancelled at once": Flood.cancellations,
    "health and reflection": Flood.health_and_reflection,
}


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _canvas(side: int) -> bytes:
    """Returns a WebP of 148 bytes whose canvas has this side."""
    tiny = _saved(Image.fromarray(np.zeros((1, 1, 3), np.uint8)), "WEBP", lossless=True)
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + tiny[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


async def flood_on_demand(name: str, address: str, job: str) -> None:
    """Floods between `go` and `stop`."""
    flood, send = Flood(address, job), FLOODS[name]
    at_once = WATCHES if send is Flood.held_watches else AT_ONCE
    codes: Counter[str] = Counter()

    async def send_on() -> None:
        while True:
            try:
                await send(flood)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1

    print("ready", flush=True)
    tasks: list[asyncio.Task[None]] = []
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line == "go":
            codes.clear()
            tasks = [asyncio.create_task(send_on()) for _ in range(at_once)]
        else:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    os.nice(19)  # whoever floods has a machine of its own elsewhere
    asyncio.run(flood_on_demand(*sys.argv[1:]))
