"""Processor time per event through the page (Connect over HTTP/1.1), beside native gRPC; and the page's first event.

Partial masks of 28 x 28 cells, as a search sends them. Live: many jobs at once, each event sent on its own. Replayed:
the stored events of ended jobs. The processor time of the service is counted, which serves the page too, and that of
sagittal-page if it runs beside the service. The callers and Redis do the same work on all sides. The first event is
measured in Chromium, by the page itself: from the click on Explain until the browser has drawn the job's first event.
In the view "What if?", a real worker scores what remains when one patch after another is hidden: from the key until the
page shows the score. After each, one evaluation of the same network is timed here.
"""

import argparse
import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch
from answering_worker import MODEL, model
from playwright.async_api import Page, async_playwright
from reports import table, write_section
from service_load import percentile, picture
from service_stack import PATIENCE, Program, Stack, free_port, running_stack
from subject import MODELS, SHIPPED

from sagittal.client import RISE, Client
from sagittal.core.jobs import JobKind, JobState, Lease
from sagittal.models.sources import load_source
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc
from sagittal.v1 import model_pb2, tensor_pb2

#: Jobs at the same time, events of each, and the time between two of them in seconds.
STREAMS, EVENTS, PACE = 20, 100, 0.05

#: Comparisons of both sides, in turn.
TURNS = 5

#: Largest ratio that meets the goal.
GOAL = 1.3

#: Explanations whose first event is measured in Chromium, and the goal in milliseconds.
FIRST_EVENTS, FIRST_EVENT_GOAL = 20, 200

#: A network that is really evaluated.
REAL = "efficientnet-lite0"

#: Patches that are hidden one after another in "What if?", the first of which are not counted; and the goal in
#: milliseconds beyond one evaluation.
TRIES, WARMING, WHAT_IF_GOAL = 44, 4, 100

#: Hides the patch in focus, and returns the milliseconds until the page shows the score.
TRY = """() => new Promise(done => {
    const board = document.querySelector(".board");
    const press = key => board.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    const latest = () => document.querySelector(".what-if ol.tries button")?.textContent;
    const [before, began] = [latest(), performance.now()];
    const look = () => {
        if (latest() === before) return requestAnimationFrame(look);
        done(performance.now() - began);
        press("ArrowRight");
    };
    press(" ");
    look();
})"""

WATCH, EXPLAIN = "WatchExplanation", "Explain"
SERVICE = "/sagittal.v1.ExplanationService/"


def work() -> None:
    """The worker: sends partial masks at a pace, for all jobs at once."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    settings = QueueSettings(url=os.environ["SAGITTAL_QUEUE__URL"])
    registry = RedisWorkerRegistry(settings)
    registry.publish(model())
    ready = [(MODEL, "1", model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY))]
    for number in range(STREAMS):
        registry.announce(f"paced-{number}", ready, ttl=86_400.0)
    with ThreadPoolExecutor(STREAMS) as pool:
        for number in range(STREAMS):
            pool.submit(_answer, settings, f"paced-{number}", stopped)
    registry.close()


def _answer(settings: QueueSettings, name: str, stopped: threading.Event) -> None:
    queue = RedisWorkerQueue(settings, worker=name)
    while not stopped.is_set():
        lease = queue.lease([(MODEL, "1")], block_seconds=0.5)
        if lease is None:
            continue
        score = pb.ClassScore(index=1, label="yes", score=0.9)
        queue.append(lease, [_event(lease, prediction=pb.Prediction(target=score, top=[score]))])
        half = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT16, shape=[28, 28], data=bytes(28 * 28 * 2))
        for number in range(EVENTS if lease.job.kind is JobKind.EXPLANATION else 0):
            queue.append(lease, [_event(lease, mask=pb.Mask(saliency=half, final=number == EVENTS - 1, index=number))])
            time.sleep(PACE)
        queue.settle(lease, _event(lease, completed=pb.Completed(model_version="1")), JobState.COMPLETED)
    queue.close()


def _event(lease: Lease, **fact: object) -> bytes:
    event = pb.ExplanationEvent(job_id=lease.job.job_id, **fact)
    event.time.GetCurrentTime()
    return event.SerializeToString()


def by_grpc(address: str, name: str, request: service_pb.ExplainRequest | service_pb.WatchExplanationRequest) -> int:
    """Returns the number of events of one stream by native gRPC."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        call = getattr(service_grpc.ExplanationServiceStub(channel), name)
        return sum(1 for _ in call(request))


def by_page(address: str, name: str, request: service_pb.ExplainRequest | service_pb.WatchExplanationRequest) -> int:
    """Returns the number of events of one stream through the page, as a browser reads it."""
    data = request.SerializeToString()
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    headers = {"content-type": "application/connect+proto"}
    connection.request("POST", SERVICE + name, struct.pack(">BI", 0, len(data)) + data, headers)
    answer, events = connection.getresponse(), 0
    while head := answer.read(5):
        flags, size = struct.unpack(">BI", head)
        answer.read(size)
        events += not flags & 2
    connection.close()
    return events


def run(stack: Stack, requests: list, read: Callable[..., int], address: str, name: str) -> Mapping[str, float]:
    """Returns the microseconds of processor time per event of each process, for streams at the same time."""
    before = stack.cpu_seconds()
    with ThreadPoolExecutor(len(requests)) as pool:
        events = sum(pool.map(lambda request: read(address, name, request), requests))
    return {program: 1e6 * (used - before[program]) / events for program, used in stack.cpu_seconds().items()}


#: By side, and by load ("live" and "replayed"): the processor time of each program in each turn.
Found = Mapping[str, Mapping[str, list[Mapping[str, float]]]]


def measure(stack: Stack, inside: str, beside: str, turns: int) -> Found:
    """Returns the processor time of each side.

    Args:
        stack: The installation.
        inside: Address of the page that the service serves.
        beside: Address of sagittal-page.
        turns: Number of comparisons, in each of which the sides take turns.
    """
    sides = {"gRPC": (by_grpc, stack.address), "inside": (by_page, inside), "beside": (by_page, beside)}
    found: Found = {load: {side: [] for side in sides} for load in ("live", "replayed")}
    seeds = iter(range(10**6))
    for _ in range(turns):
        for side, (read, address) in sides.items():
            specs = [
                pb.ExplanationSpec(
                    model=MODEL,
                    image=tensor_pb2.Image(encoded=picture()),
                    seed=next(seeds),
                    cache_policy=pb.CACHE_POLICY_BYPASS,
                    partial_masks=True,
                )
                for _ in range(STREAMS)
            ]
            found["live"][side].append(
                run(stack, [service_pb.ExplainRequest(spec=each) for each in specs], read, address, EXPLAIN)
            )
        with grpc.insecure_channel(stack.address) as channel:
            listed = service_grpc.ExplanationServiceStub(channel).ListExplanations(
                service_pb.ListExplanationsRequest(page_size=2 * STREAMS)
            )
        watched = [service_pb.WatchExplanationRequest(job_id=each.job_id) for each in listed.explanations]
        for side, (read, address) in sides.items():
            found["replayed"][side].append(run(stack, watched * 3, read, address, WATCH))
    return found


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """Opens a page in Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield await browser.new_page()
        await browser.close()


async def first_events(address: str) -> list[float]:
    """Returns, for each of some explanations in Chromium, the milliseconds from the click to its first drawn event."""
    with tempfile.TemporaryDirectory() as folder:
        async with chromium() as page:
            found = []
            for number in range(FIRST_EVENTS):
                image = Path(folder) / f"{number}.jpg"
                image.write_bytes(picture() + number.to_bytes())  # bytes after the end make it another image
                found.append(await _first_event(page, f"http://{address}", image))
            return found


@dataclass(frozen=True, slots=True)
class Tries:
    """Milliseconds of the tries in "What if?", and of the evaluations after each."""

    shown: Sequence[float]
    evaluations: Sequence[float]
    load: float

    def text(self) -> str:
        """Returns the paragraph about them."""
        evaluation = statistics.median(self.evaluations)
        shown, high = statistics.median(self.shown), percentile(self.shown, 0.95)
        beyond, most, ratio = shown - evaluation, high - evaluation, shown / evaluation
        return f"""In "What if?", the score of an image with one more hidden patch was shown {beyond:.0f} ms beyond one
evaluation (median of {len(self.shown)}; 95th percentile {most:.0f} ms), that is, after {ratio:.1f} times its time.
The goal is {WHAT_IF_GOAL} ms on an idle machine; the load average was {self.load:.1f}. The worker has
EfficientNet-Lite0, one thread and no other job. An evaluation of the same network took {evaluation:.0f} ms
(median, in turn with the tries)."""


async def tries(service: str, address: str) -> Tries:
    """Explains an image, and hides its patches in Chromium."""
    with Client(service) as client:
        found = client.explain(SHIPPED / "chelsea.png", model=REAL, method=RISE(masks=8))
    torch.set_num_threads(1)
    network = load_source({"kind": "efficientnet-lite", "variant": 0}).module.eval()
    shown, evaluations = [], []
    async with chromium() as page:
        page.set_default_timeout(1e3 * PATIENCE)
        await page.goto(f"http://{address}/#/job/{found.job_id}")
        await page.get_by_role("tab", name="What if?").click()
        await page.locator(".what-if .now").wait_for()
        for _ in range(TRIES):
            shown.append(await page.evaluate(TRY))
            began = time.perf_counter()
            with torch.no_grad():
                network(torch.rand(1, 3, 224, 224))
            evaluations.append(1e3 * (time.perf_counter() - began))
    return Tries(shown[WARMING:], evaluations[WARMING:], os.getloadavg()[0])


async def _first_event(page: Page, address: str, image: Path) -> float:
    await page.goto("about:blank")
    await page.goto(address)
    await page.set_input_files("input[type=file]", image)
    await page.locator(".top li").first.wait_for()
    await page.get_by_role("button", name="Explain", exact=True).click()
    measured = "performance.getEntriesByName('first-event-drawn')[0]?.duration"
    # a condition that the page itself waits for would be text to evaluate, which its policy forbids
    while (drawn := await page.evaluate(measured)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return float(drawn)


def report(found: Found, drawn: list[float], tried: Tries, turns: int) -> str:
    """Returns the section about a measurement."""
    rows = []
    for load, sides in found.items():
        native, inside, service, page = (
            statistics.median(each[program] for each in sides[side])
            for side, program in (
                ("gRPC", "service"),
                ("inside", "service"),
                ("beside", "service"),
                ("beside", "sagittal-page"),
            )
        )
        ratio = f"{(service + page) / native:.2f}"
        cells = [f"{native:.0f}", f"{inside:.0f}", f"{inside / native:.2f}", f"{service:.0f} + {page:.0f}", ratio]
        rows.append([load, *cells])
    header = ["events", "native gRPC, µs", "page in the service, µs", "ratio", "service + sagittal-page, µs", "ratio"]
    median, high = statistics.median(drawn), percentile(drawn, 0.95)
    return f"""## Events through the page

Written by `make bench-page`. Processor time for each event (a partial mask of 28 x 28 cells), as medians of {turns}
turns. Live events come from {STREAMS} jobs at a time, each with {EVENTS} events {1e3 * PACE:.0f} ms apart; replayed
ones come from ended jobs.

{table(header, rows)}
The ratio is that of all processor time to native gRPC's, without callers, Redis and worker. The goal is at most
{GOAL:.1f}. If the service serves the page (`SAGITTAL_PAGE=true`, as in `sagittal up`), an event is not sent over gRPC
at all; `sagittal-page` is a process of its own, which receives each event and sends it again.

In Chromium, the first event of a job was drawn {median:.0f} ms after the click on *Explain* (median of {len(drawn)};
95th percentile {high:.0f} ms). The goal is {FIRST_EVENT_GOAL} ms on an idle machine.

{tried.text()}

The load average was {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors.
"""


def main() -> None:
    """Measures; `--write` puts the section into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    inside, beside = free_port(), free_port()
    serves = {"SAGITTAL_PAGE": "true", "SAGITTAL_PAGE_LISTEN_PORT": str(inside)}
    with running_stack([__file__, "--worker"], model=MODEL, environment=serves) as stack:
        variables = os.environ | {"SAGITTAL_PAGE_ADDRESS": stack.address, "SAGITTAL_PAGE_LISTEN_PORT": str(beside)}
        variables["SAGITTAL_PAGE_LOG_LEVEL"] = "warning"
        process = subprocess.Popen([sys.executable, "-m", "sagittal.page.main"], env=variables)
        try:
            stack.programs.append(Program("sagittal-page", process.pid))
            for port in (inside, beside):
                _wait_for_page(port)
            drawn = asyncio.run(first_events(f"127.0.0.1:{inside}"))
            found = measure(stack, f"127.0.0.1:{inside}", f"127.0.0.1:{beside}", options.turns)
        finally:
            process.terminate()
            process.wait(PATIENCE)
    scores = {"SAGITTAL_MODELS_FILE": str(MODELS), "SAGITTAL_THREADS": "1"}
    with running_stack(["-m", "sagittal.worker.main"], model=REAL, environment=serves | scores) as stack:
        _wait_for_page(inside)
        tried = asyncio.run(tries(stack.address, f"127.0.0.1:{inside}"))
    text = report(found, drawn, tried, options.turns)
    print(text)
    if options.write:
        write_section(options.write, "page", text)
    return None


def _wait_for_page(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/livez")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"sagittal-page did not answer within {PATIENCE:g} s")


if __name__ == "__main__":
    main()
