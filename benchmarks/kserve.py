#!/usr/bin/env python3
"""The latency of predictions at MLServer, without and beside an explanation of the same model.

    .venv/bin/python benchmarks/kserve.py --write docs/kserve.md

It runs MLServer of the peers' environment with a model that takes a fixed time for each batch, as an accelerator does,
and `sagittal-kserve` with a queue and a worker inside. Predictions arrive at random times. Blocks without and beside
explanations alternate.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import urllib3
from reports import table, write_section

from sagittal.cli.stack import free_ports
from sagittal.inference.v2 import inference_pb2 as pb

ROOT = Path(__file__).parents[1]

#: Side of the model's input in pixels.
SIZE = 224

#: Time that the model takes for a batch, and for each of its images, in seconds.
BATCH_SECONDS, IMAGE_SECONDS = 0.02, 0.001

#: Most requests in a batch of MLServer.
MAX_BATCH = 8

#: Predictions in a second.
RATES = (10.0, 20.0)

#: Times for which MLServer collects a batch, in seconds: less than the model takes for one, and more.
WINDOWS = (0.005, 0.03)

#: Simultaneous calls of the explainer, and images of each.
LIMITS = ("1x1", "1x4")

HEADER = (
    "window", "calls x images", "predictions/s", "median", "beside", "p99", "beside", "ratio of p99", "of pairs",
    "evaluations/s",
)  # fmt: skip

REPORT = """Measured by `benchmarks/kserve.py` against MLServer {version}, with a model that takes {base:g} ms for a
batch and {each:g} ms for each image, one batch at a time, as an accelerator does. MLServer collects requests for a
batch during the window (`max_batch_time`), {most} at most. Predictions of one image of {size} x {size} pixels arrive
at random times over gRPC. Beside them, RISE explains one image after another with the given number of simultaneous
calls and images of each call. Times are in milliseconds. Blocks of {seconds:g} s without and beside explanations
alternate, {pairs} pairs for each row. The processes share two processors with other programs (load {load:.0f});
MLServer and the callers have priority over the explainer, which has another machine in a cluster.

{table}
"""

#: Longest time that a process may take to start, in seconds.
PATIENCE = 180.0

#: The classifier of MLServer: it holds the device for a time, and scores an image by its mean.
RUNTIME = """
import asyncio
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Device(MLModel):
    async def load(self):
        self._device = asyncio.Lock()
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        async with self._device:
            await asyncio.sleep({batch} + {image} * len(images))
        mean = images[:, :, ::8, ::8].mean((1, 2, 3))
        scores = np.stack([mean, -mean], 1).astype(np.float32)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
"""


@dataclass(slots=True)
class Measured:
    """Latencies of predictions in seconds, and evaluations of explanations in a second."""

    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of the 99th percentiles of each pair of blocks."""
    evaluations: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """99th percentile beside explanations over that without, of all blocks."""
        return percentile(self.beside, 99) / percentile(self.without, 99)


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


@contextmanager
def process(command: Sequence[str], log: Path, **options: object) -> Iterator[None]:
    """Runs a program until the context ends."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, **options)  # type: ignore[call-overload]
    try:
        yield
    finally:
        started.terminate()
        started.wait(30)


@contextmanager
def mlserver(directory: Path, peers: Path, window: float) -> Iterator[str]:
    """Runs MLServer with the model, with batches collected for `window` seconds; yields the address of its gRPC."""
    repository = directory / "models"
    (repository / "device").mkdir(parents=True)
    (repository / "device" / "runtime.py").write_text(RUNTIME.format(batch=BATCH_SECONDS, image=IMAGE_SECONDS))
    settings = {
        "name": "device",
        "implementation": "runtime.Device",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
        "max_batch_size": MAX_BATCH,
        "max_batch_time": window,
    }
    (repository / "device" / "model-settings.json").write_text(json.dumps(settings))
    http, rpc, metrics = free_ports(3)
    server = {"host": "127.0.0.1", "http_port": http, "grpc_port": rpc, "metrics_port": metrics, "parallel_workers": 0}
    (repository / "settings.json").write_text(json.dumps(server | {"debug": False}))
    environment = {**os.environ, "PYTHONPATH": str(repository / "device")}
    command = [str(peers / "bin" / "mlserver"), "start", str(repository)]
    with process(command, directory / "mlserver.log", cwd=directory, env=environment):
        wait_for_port(rpc)
        yield f"127.0.0.1:{rpc}"


@contextmanager
def explainer(directory: Path, address: str, concurrency: int, batch: int) -> Iterator[str]:
    """Runs the explainer; yields its URL."""
    (directory / "model.toml").write_text(f"[[models]]\nsource = {{ max_batch = {batch} }}\n")
    http, rpc = free_ports(2)
    settings = {
        "model_name": "device", "predictor_host": address, "predictor_protocol": "grpc-v2", "http_port": http,
        "grpc_port": rpc, "listen_host": "127.0.0.1", "predictor_concurrency": concurrency,
        "model_file": directory / "model.toml",
    }  # fmt: skip
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "sagittal.kserve.start", *arguments]
    variables = {**os.environ, "SAGITTAL_THREADS": "1"}
    with process(command, directory / "explainer.log", env=variables, preexec_fn=give_way):
        wait_for_port(http)
        url, until = f"http://127.0.0.1:{http}", time.monotonic() + PATIENCE
        while urllib3.request("GET", f"{url}/v2/health/ready").status != 200:
            if time.monotonic() > until:
                raise TimeoutError((directory / "explainer.log").read_text())
            time.sleep(0.2)
        yield url


def give_way() -> None:
    """Gives this process a lower priority than MLServer and the callers, as if it had another machine."""
    if os.sched_getscheduler(0) == os.SCHED_RR:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    else:
        os.nice(5)


def wait_for_port(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.1)


async def predict_block(address: str, rate: float, number: int, chance: random.Random) -> list[float]:
    """Returns the latencies of predictions that arrive at random times, from the time at which each was due."""
    request = pb.ModelInferRequest(model_name="device")
    request.inputs.add(name="images", datatype="FP32", shape=[1, 3, SIZE, SIZE])
    request.raw_input_contents.append(np.zeros((1, 3, SIZE, SIZE), "<f4").tobytes())
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        await infer(request)
        loop, due, calls = asyncio.get_running_loop(), asyncio.get_running_loop().time(), []

        async def call(at: float) -> float:
            await infer(request, timeout=60)
            return loop.time() - at

        for _ in range(number):
            due += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due - loop.time()))
            calls.append(asyncio.create_task(call(due)))
        return list(await asyncio.gather(*calls))


@asynccontextmanager
async def explaining(url: str, seed: int) -> AsyncIterator[list[int]]:
    """Explains one image after another while the block runs; yields the evaluations of each that ended."""
    done: list[int] = []
    stop = asyncio.Event()

    def explain(number: int) -> Mapping[str, object]:
        noise = np.random.default_rng(seed * 1000 + number).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noise).save(file, "PNG")
        parameters = {"method": "rise", "method_parameters": {"masks": 200}, "curves": False, "target": 0}
        body = {"instances": [{"b64": base64.b64encode(file.getvalue()).decode()}], "parameters": parameters}
        response = urllib3.request("POST", f"{url}/v1/models/device:explain", json=body, timeout=600)
        found: Mapping[str, object] = response.json()["explanations"][0]
        return found

    async def keep() -> None:
        number = 0
        while not stop.is_set():
            found = await asyncio.to_thread(explain, number)
            done.append(int(str(found["evaluations"])))
            number += 1

    task = asyncio.create_task(keep())
    await asyncio.sleep(1.0)
    try:
        yield done
    finally:
        stop.set()
        await task


async def measure(address: str, url: str, rate: float, pairs: int, seconds: float) -> Measured:
    """Alternates blocks without and beside explanations."""
    found, number = Measured(), round(rate * seconds)
    for pair in range(pairs):
        without = await predict_block(address, rate, number, random.Random(pair))  # noqa: S311 - arrivals
        began = time.monotonic()
        async with explaining(url, pair) as done:
            beside = await predict_block(address, rate, number, random.Random(pair))  # noqa: S311 - the same arrivals
        found.evaluations.append(sum(done) / (time.monotonic() - began))
        found.without += without
        found.beside += beside
        found.ratios.append(percentile(beside, 99) / percentile(without, 99))
        print(f"{rate}/s pair {pair}: {found.ratios[-1]:.2f}, {found.evaluations[-1]:.0f} evaluations/s", flush=True)
    return found


def row(window: float, limit: str, rate: float, found: Measured) -> Sequence[str]:
    times = (f"{1e3 * percentile(each, share):.0f}" for share in (50, 99) for each in (found.without, found.beside))
    spread = f"{min(found.ratios):.2f} to {max(found.ratios):.2f}"
    speed = f"{np.mean(found.evaluations):.0f}"
    return [f"{1e3 * window:g}", limit, f"{rate:g}", *times, f"{found.ratio:.2f}", spread, speed]


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of blocks at each rate")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a block")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="predictions in a second")
    parser.add_argument("--windows", type=float, nargs="+", default=WINDOWS, help="seconds that MLServer collects for")
    parser.add_argument("--limits", nargs="+", default=LIMITS, help="simultaneous calls x images of each")
    parser.add_argument("--write", type=Path)
    return parser.parse_args()


def facts(asked: argparse.Namespace) -> Mapping[str, object]:
    found = subprocess.check_output([asked.peers / "bin" / "mlserver", "--version"], text=True)
    return {
        "version": found.split()[-1], "base": 1e3 * BATCH_SECONDS, "each": 1e3 * IMAGE_SECONDS, "most": MAX_BATCH,
        "size": SIZE, "seconds": asked.seconds, "pairs": asked.pairs,
    }  # fmt: skip


def main() -> None:
    asked, rows = settings(), []
    load = os.getloadavg()[0]
    for window, limit in itertools.product(asked.windows, asked.limits):
        concurrency, _, batch = limit.partition("x")
        with ExitStack() as running:
            directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
            address = running.enter_context(mlserver(directory, asked.peers, window))
            url = running.enter_context(explainer(directory, address, int(concurrency), int(batch)))
            for rate in asked.rates:
                found = asyncio.run(measure(address, url, rate, asked.pairs, asked.seconds))
                rows.append(row(window, limit, rate, found))
                print(rows[-1], flush=True)
    text = table(HEADER, rows)
    print(text)
    if asked.write:
        write_section(asked.write, "measured", REPORT.format(**facts(asked), table=text, load=load))


if __name__ == "__main__":
    main()
