"""How the page draws in Chromium: frames while a graph of 100 nodes is panned and zoomed, and memory over explanations.

The page's own times are measured, over a service whose worker answers immediately. Frames are those of the browser's
clock for animations, without a graphics card. Memory is JavaScript's heap after a collection of garbage.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from answering_worker import MODEL, answer, model
from playwright.async_api import Page, async_playwright
from reports import write_section
from service_load import percentile, picture
from service_stack import free_port, running_stack

from sagittal.core.jobs import JobKind, JobState, Lease
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import model_pb2

#: Nodes in each row of the graph, 100 in all, and the side of its grid of patches.
ROWS, GRID = (4, 20, 36, 40), 7

#: Explanations in one tab, and after how many of them its memory is measured.
EXPLANATIONS, EACH = 200, 25

#: Frames of each movement.
FRAMES = 180

#: Longest wait for what the page shows, in milliseconds.
LONGEST = 120_000

KIB = 1024

#: Moves the graph at each frame; returns the milliseconds between frames.
MOVE = """([kind, frames]) => new Promise(done => {
    const graph = document.querySelector(".graph");
    const [smaller, larger] = document.querySelectorAll(".zoom button");
    const times = [];
    const step = now => {
        const frame = times.push(now);
        if (kind === "pan") graph.scrollTo(frame * 20, frame);
        if (kind === "zoom" && frame % 6 === 0) (frame % 60 < 30 ? smaller : larger).click();
        if (frame <= frames) return requestAnimationFrame(step);
        done(times.slice(1).map((time, index) => time - times[index]));
    };
    requestAnimationFrame(step);
})"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Times of frames, and memory, of the drawn graph."""

    pan: Sequence[float]
    """Milliseconds between frames."""
    zoom: Sequence[float]
    heap: Sequence[int]
    """KiB of the heap after every `EACH` explanations."""


def work() -> None:
    """The worker: answers each explanation at once, with a graph."""
    settings = QueueSettings(url=os.environ["SAGITTAL_QUEUE__URL"])
    registry = RedisWorkerRegistry(settings)
    registry.publish(model())
    registry.announce("drawing", [(MODEL, "1", model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY))], ttl=86_400.0)
    queue = RedisWorkerQueue(settings, worker="drawing")
    while True:
        lease = queue.lease([(MODEL, "1")], block_seconds=0.5)
        if lease is not None:
            events, last = answer(lease)
            queue.append(lease, [*events, *(graph(lease) if lease.job.kind is JobKind.EXPLANATION else ())])
            queue.settle(lease, last, JobState.COMPLETED)


def graph(lease: Lease) -> list[bytes]:
    """Returns the events of a graph in which each node below the roots has two parents."""
    found: list[pb.ExplanationEvent] = []
    above: range | None = None
    for depth, width in enumerate(ROWS):
        row = range(above.stop if above else 0, (above.stop if above else 0) + width)
        for number in row:
            patches = pb.PatchSet(grid=GRID, patches=sorted({(number + step) % GRID**2 for step in range(8 - depth)}))
            node = pb.GraphNode(id=str(number), patches=patches, score=1 - number / 100, root=above is None)
            found.append(pb.ExplanationEvent(job_id=lease.job.job_id, graph_node=node))
            for step in (0, 1) if above else ():
                parent = above[(number + step) % len(above)]
                edge = pb.GraphEdge(parent=str(parent), child=str(number), removed_patch=(7 * number + step) % GRID**2)
                found.append(pb.ExplanationEvent(job_id=lease.job.job_id, graph_edge=edge))
        above = row
    for event in found:
        event.time.GetCurrentTime()
    return [event.SerializeToString() for event in found]


async def measure(address: str) -> Drawn:
    """Explains in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.jpg"
        image.write_bytes(picture())
        async with async_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = await playwright.chromium.launch(executable_path=chromium, args=flags)
            page = await browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(LONGEST)
            await page.goto(f"http://{address}")
            await page.set_input_files("input[type=file]", image)
            await page.locator(".top li").first.wait_for()
            heap = await memory(page)
            await explain(page)
            moved = [await page.evaluate(MOVE, [kind, FRAMES]) for kind in ("pan", "zoom")]
            await browser.close()
            return Drawn(*moved, heap)


async def memory(page: Page) -> list[int]:
    """Explains again and again in one tab; returns the heap after the first and after every `EACH`."""
    browser = await page.context.new_cdp_session(page)
    found = []
    for number in range(EXPLANATIONS + 1):
        await explain(page)
        if number % EACH == 0:
            await browser.send("HeapProfiler.collectGarbage")
            found.append(int((await browser.send("Runtime.getHeapUsage"))["usedSize"] / KIB))
    return found


async def explain(page: Page) -> None:
    """Explains, and shows the heatmap and then the graph."""
    await page.get_by_role("button", name="Explain", exact=True).click()
    await page.locator(".progress").get_by_text("Done: ").wait_for()
    await page.get_by_role("tab", name="Heatmap").click()
    await page.get_by_role("tab", name="Attention graph").click()
    await page.locator(".node").nth(sum(ROWS) - 1).wait_for(state="attached")


def report(drawn: Drawn) -> str:
    """Returns the section about a measurement."""
    (pan, pan_most), (zoom, zoom_most) = (
        (statistics.median(times), percentile(times, 0.95)) for times in (drawn.pan, drawn.zoom)
    )
    heap = [f"{each / KIB:.1f}" for each in drawn.heap]
    return f"""Written by `make bench-page`, in Chromium without a graphics card; 60 frames a second are 16.7 ms each.

- A graph of {sum(ROWS)} nodes: panned, a frame came after {pan:.1f} ms (median; 95th percentile {pan_most:.1f} ms);
  with ten steps of zoom a second, after {zoom:.1f} ms (95th percentile {zoom_most:.1f} ms).
- {EXPLANATIONS} explanations in one tab, each with such a graph: JavaScript's heap had {heap[0]} MiB after the first,
  and then, after every {EACH}, {", ".join(heap[1:])} MiB.

The load average was {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors.
"""


def main() -> None:
    """Measures; `--write` puts the section into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    port = free_port()
    serves = {"SAGITTAL_PAGE": "true", "SAGITTAL_PAGE_LISTEN_PORT": str(port)}
    with running_stack([__file__, "--worker"], model=MODEL, environment=serves):
        text = report(asyncio.run(measure(f"127.0.0.1:{port}")))
    print(text)
    if options.write:
        write_section(options.write, "drawing", text)
    return None


if __name__ == "__main__":
    main()
