#!/usr/bin/env python3
"""Photographs the page in ten states, three widths and two themes, over a real stack, for people to look at.

Takes several minutes on two cores. `--docs` also writes the six pictures of docs/page.md. What a state contains is
compared by the tests, which need no pictures: fonts and drawing differ between machines.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import PIL.Image
from playwright.sync_api import Browser, Page, sync_playwright

from sagittal.cli.stack import MODELS_FILE, LocalStack, Plan, free_ports
from sagittal.client import BatchItem, Client
from sagittal.client.methods import Method

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = "efficientnet-lite0"
PHOTOGRAPHS = ROOT / "examples" / "images"
CAT = PHOTOGRAPHS / "chelsea.png"
#: Phone, tablet and wide screen: width and height of the window in pixels.
WINDOWS = {"phone": (390, 780), "tablet": (820, 900), "wide": (1440, 900)}
#: Time for whatever the page waits for, in milliseconds.
PATIENCE = 60_000
#: Quality of the pictures in the documentation, as WebP.
QUALITY = 88
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass(frozen=True, slots=True)
class State:
    """A state of the page."""

    address: str
    """Fragment of its address."""
    shown: str
    """Selector of what is visible when it is complete."""
    act: Callable[[Page], object] = lambda _page: None
    """Actions on the page before the picture is taken."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the documentation."""

    name: str
    state: str
    window: tuple[int, int]
    dark: bool = False


PICTURES = (
    Picture("page-explain", "explain", (1280, 860)),
    Picture("page-what-if", "what-if", (820, 860)),
    Picture("page-graph", "graph", (1280, 860), dark=True),
    Picture("page-compare", "compare", (1280, 1446)),
    Picture("page-batches", "batches", (1000, 560)),
    Picture("page-phone", "explain", (390, 780)),
)


def main() -> None:
    """Photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", help="where the snapshots are written")
    parser.add_argument("--docs", action="store_true", help="also write the pictures of docs/page.md")
    options = parser.parse_args()
    if options.directory:
        options.directory.mkdir(parents=True, exist_ok=True)
    port, service, worker, served = free_ports(4)
    plan = Plan(
        listen=f"127.0.0.1:{port}", service_metrics=service, worker_metrics=worker, page=served, models_file=MODELS_FILE
    )
    with LocalStack(plan) as stack, Client(plan.listen) as client, sync_playwright() as playwright:
        stack.wait_for_service()
        stack.wait_for_models(client, say)
        states = prepare(client)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        address = f"http://127.0.0.1:{served}"
        for name, path, size, dark in shots(options.directory, docs=options.docs):
            say(path.name)
            photograph(browser, address, states[name], path, size, dark=dark, whole=path.parent != IMAGES)
        browser.close()


def shots(directory: Path | None, *, docs: bool) -> Iterator[tuple[str, Path, tuple[int, int], bool]]:
    """Yields the state, file, window and theme of each picture."""
    for state in STATES if directory else ():
        for window, size in WINDOWS.items():
            for dark in (False, True):
                yield state, (directory or Path()) / f"{state}-{window}-{'dark' if dark else 'light'}.png", size, dark
    for picture in PICTURES if docs else ():
        yield picture.state, IMAGES / f"{picture.name}.webp", picture.window, picture.dark


STATES = (
    "start", "bad-file", "explain", "what-if", "sets", "graph", "compare", "jobs", "batches", "system",
)  # fmt: skip


def prepare(client: Client) -> Mapping[str, State]:
    """Explains the cat with several methods, runs a batch, and returns the states to photograph."""
    heatmap = explain(client, "igos++")
    other = explain(client, "igos++", target="tabby")
    graph = explain(client, "structured-attention-graph")
    sets = explain(client, "minimal-sufficient-explanations")
    client.batches.create("night", model=MODEL, method=Method("occlusion"), expected_items=12)
    photographs = sorted(path for path in PHOTOGRAPHS.iterdir() if path.suffix in {".png", ".jpg"})
    items = [BatchItem(key=path.name, image=path) for path in photographs]
    broken = BatchItem(key="photos/0004.jpg", image=b"no image")
    for _ in client.batches.run("night", [*items, broken]):
        pass
    say("states prepared")
    return {
        "start": State("/explain", ".drop"),
        "bad-file": State("/explain", "[role=alert]", lambda page: _choose(page, "photo.heic", b"ftypheic")),
        "explain": State(f"/job/{heatmap}", ".plot"),
        "what-if": State(f"/job/{heatmap}", ".now .share", _hide_some),
        "sets": State(f"/job/{sets}", ".card"),
        "graph": State(f"/job/{graph}", ".node", lambda page: page.locator(".node").nth(1).hover()),
        "compare": State(f"/compare/{heatmap}/{other}", ".parting canvas"),
        "jobs": State("/jobs", ".rows .thumbnail img"),
        "batches": State("/batches", ".failures li", lambda page: page.get_by_text("Why items failed").click()),
        "system": State("/system", ".tiles"),
    }


def explain(client: Client, method: str, target: str | None = None) -> str:
    """Explains the cat and returns the identifier of the job."""
    say(method)
    return client.explain(CAT, model=MODEL, method=Method(method), target=target, max_evaluations=1500).job_id


def photograph(
    browser: Browser, address: str, state: State, path: Path, size: tuple[int, int], *, dark: bool, whole: bool
) -> None:
    """Writes a picture of a state: of the whole page, or of what the window shows."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/#{state.address}")
    page.locator("main h1, main .drop").first.wait_for(state="attached")
    state.act(page)
    page.locator(state.shown).first.wait_for()
    page.wait_for_load_state("networkidle") if state.address == "/explain" else page.wait_for_timeout(700)
    taken = page.screenshot(full_page=whole)
    page.close()
    with PIL.Image.open(BytesIO(taken)) as picture:
        picture.convert("RGB").save(path, quality=QUALITY)


def _choose(page: Page, name: str, content: bytes) -> None:
    page.set_input_files("input[type=file]", {"name": name, "mimeType": "image/heic", "buffer": content})


def _hide_some(page: Page) -> None:
    """Hides three patches of the cat's face."""
    page.get_by_role("tab", name="What if?").click()
    page.locator(".patch").nth(16).click()
    for patch in (17, 23):
        page.locator(".patch").nth(patch).click()
    page.locator(".tries").get_by_text("3 patches hidden").wait_for()


def say(text: str) -> None:
    """Reports progress."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
