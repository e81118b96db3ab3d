"""Load: a number of streams, each requesting one explanation after another."""

import asyncio
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from PIL import Image

from sagittal.v1 import explanation_pb2, explanation_service_pb2, explanation_service_pb2_grpc, tensor_pb2

#: Side of the sent image, in pixels.
SIDE = 224


@dataclass(slots=True)
class Timings:
    """Seconds of each job, by stage."""

    first: list[float] = field(default_factory=list)
    """From sending the request to its first event."""
    done: list[float] = field(default_factory=list)
    """From sending the request to its last event."""
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By stage, from the times in the events."""
    seconds: float = 0.0
    """The whole measurement."""

    @property
    def jobs(self) -> int:
        """Number of jobs that were completed."""
        return len(self.done)


def picture() -> bytes:
    """Returns a JPEG file of noise and shades."""
    rng = np.random.default_rng(0)
    shades = np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None] / (2 * SIDE) * 200
    pixels = (shades + rng.uniform(0, 40, (SIDE, SIDE, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value that `share` of the values do not exceed."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


async def run_load(address: str, model: str, *, streams: int, seconds: float, first_seed: int = 0) -> Timings:
    """Runs a number of streams for a time; every request has a different seed, so that none is answered from the cache.

    Args:
        address: Address of the service.
        model: Name of the model.
        streams: Number of concurrent explanations.
        seconds: Duration.
        first_seed: Seed of the first request.
    """
    timings, image, seeds = Timings(), picture(), iter(range(first_seed, first_seed + 10**9))
    options = [("grpc.max_concurrent_streams", 1000)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        started = time.perf_counter()

        async def ask_on() -> None:
            while time.perf_counter() - started < seconds:
                await _ask(stub, model, image, next(seeds), timings)

        await asyncio.gather(*(ask_on() for _ in range(streams)))
        timings.seconds = time.perf_counter() - started
    return timings


async def _ask(
    stub: "explanation_service_pb2_grpc.ExplanationServiceAsyncStub",
    model: str,
    image: bytes,
    seed: int,
    timings: Timings,
) -> None:
    spec = explanation_pb2.ExplanationSpec(model=model, seed=seed, image=tensor_pb2.Image(encoded=image))
    began, sent, first = time.time(), time.perf_counter(), 0.0
    times: dict[str, float] = {}
    async for response in stub.Explain(explanation_service_pb2.ExplainRequest(spec=spec)):
        first = first or time.perf_counter()
        kind = response.event.WhichOneof("event") or ""
        times[kind] = response.event.time.ToNanoseconds() / 1e9
    ended, done = time.time(), time.perf_counter()
    if "completed" not in times:
        raise SystemExit(f"a job ended without a result: {sorted(times)}")
    timings.first.append(first - sent)
    timings.done.append(done - sent)
    stages = timings.stages
    stages["to the service, decoded and checked"].append(times["accepted"] - began)
    stages["queued, until the worker holds it"].append(times["started"] - times["accepted"])
    stages["the worker's answer"].append(times["completed"] - times["started"])
    stages["stored, read and sent back"].append(ended - times["completed"])
