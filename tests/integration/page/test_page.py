"""The page in Chromium: an image is dropped, an explanation forms, what-if answers, bad files and tokens are told."""

import asyncio
import hashlib
import re
import shutil
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from axe_playwright_python.base import AXE_SCRIPT
from concept_support import Concepts, a_set
from embedded_queue import Queue
from PIL import Image as Pillow
from playwright.async_api import Browser, Page, Request, Route, async_playwright, expect

from sagittal.core.jobs import JobKind, JobState
from sagittal.core.tensors import tensor_of
from sagittal.server.models import DEFAULT_PAGE
from sagittal.server.settings import Token
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2, tensor_pb2
from sagittal.v1.batch_service_pb2 import BATCH_STATE_CANCELLED, BATCH_STATE_OPEN

from ..service.support import Run, ScriptedWorker, Stack, eventually, lamp, picture, quick_settings, running, spec
from ..service.test_batches import add, batch, create, item, items
from .conftest import page_over

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAME = "<img src=x onerror=alert(1)>"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">\x1b[31m"

#: Longest wait for what the page shows, in milliseconds: a busy machine takes its time.
LONGEST = 60_000
expect.set_options(timeout=LONGEST)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # one browser for all tests
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page that fails the test if a script fails or the policy is violated."""
    page = await browser.new_page()
    page.set_default_timeout(LONGEST)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None
    )
    yield page
    await page.close()
    assert wrong == []


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / f"{HOSTILE[:9].replace('/', '')}.png"
    path.write_bytes(picture(320, 200).encoded)
    return path


def explain_in_full(run: Run) -> None:
    """A script: a heatmap with its curves and one set, and regions whose score falls with what is hidden."""
    on, off = pb.ClassScore(index=1, label=HOSTILE, score=0.9), pb.ClassScore(index=0, label="off", score=0.1)
    run.send(started=pb.Started(worker="scripted", attempt=run.lease.job.attempt))
    if run.lease.job.kind == JobKind.PREDICTION:
        run.send(prediction=pb.Prediction(target=on, top=[on, off]))
        run.settle(completed=pb.Completed(evaluations=1, model_digest="d" * 64, model_version="1"))
        return
    if run.lease.job.kind == JobKind.REGIONS:
        sets = pb.RegionScores(full=on)
        request = explanation_request(run)
        for asked in request.sets:
            hidden = len(asked.patches)
            sets.scores.append(0.9 - 0.3 * hidden)
            sets.top.append(on if hidden < 2 else off)
        run.send(region_scores=sets)
        run.settle(completed=pb.Completed(evaluations=len(sets.scores), model_digest="d" * 64, model_version="1"))
        return
    spec = pb.ExplanationSpec.FromString(run.lease.request)
    target = off if spec.target.WhichOneof("target") == "index" and spec.target.index == 0 else on
    run.send(prediction=pb.Prediction(target=target, top=[on, off], baseline_score=0.01))
    saliency = np.zeros((7, 7), np.float32)
    saliency[2:4, 2:5] = 1.0
    if target is off:
        saliency = saliency.T
    tensor = tensor_of(saliency, tensor_pb2.DATA_TYPE_FLOAT16)
    run.send(progress=pb.Progress(fraction=0.5, evaluations=100, phase="optimise"))
    run.send(mask=pb.Mask(saliency=tensor, final=True))
    for kind, scores in ((pb.CURVE_KIND_INSERTION, (0.01, 0.85, 0.9)), (pb.CURVE_KIND_DELETION, (0.9, 0.05, 0.01))):
        run.send(curve=pb.Curve(kind=kind, fractions=(0, 0.2, 1), scores=scores, auc=0.7, auc_normalized=0.78))
    # who asks for further seeds gets another interval
    insertion = pb.AreaInterval(low=0.65, high=0.75 if spec.metrics.stability else 0.72)
    run.send(stability=pb.Stability(runs=4, rank_correlation=0.93, insertion=insertion, deviation=tensor))
    robust = pb.Robustness(
        alterations=[
            {"alteration": pb.ALTERATION_KIND_ROUNDING, "sufficient": True, "minimal": True},
            {"alteration": pb.ALTERATION_KIND_JPEG, "sufficient": True},
        ],
        sufficient={"at_least": 0.9021, "held": 33, "draws": 33},
    )
    certificate = pb.Certificate(level=pb.CERTIFICATE_LEVEL_ONE_MINIMAL, checked=9, required_score=0.81, robust=robust)
    causal = pb.CausalTriple(sufficiency=0.85, without=0.05, top_without=off)
    patches = pb.PatchSet(grid=7, patches=(16, 17))
    run.send(
        sufficient_set=pb.SufficientSet(
            patches=patches, score=0.85, certificate=certificate, causal=causal, diverse=True
        )
    )
    root = pb.GraphNode(id="a", patches=patches, score=0.85, relative_score=0.94, root=True, top=on)
    child = pb.GraphNode(id="b", patches=pb.PatchSet(grid=7, patches=(16,)), score=0.2, relative_score=0.22, top=on)
    run.send(graph_node=root)
    run.send(graph_node=child)
    run.send(graph_edge=pb.GraphEdge(parent="a", child="b", removed_patch=17))
    run.send(warning=pb.Warning(reason="BASELINE_STILL_CONFIDENT", message=HOSTILE))
    run.settle(completed=pb.Completed(evaluations=550, model_digest="d" * 64, model_version="1"))


def explanation_request(run: Run) -> explanation_service_pb2.ScoreRegionsRequest:
    return explanation_service_pb2.ScoreRegionsRequest.FromString(run.lease.request)


async def explained(page: Page, address: str, image: Path) -> None:
    await page.goto(address)
    await page.set_input_files("input[type=file]", image)
    await expect(page.locator(".top li")).to_have_count(2)
    await page.get_by_role("button", name="Explain", exact=True).click()
    await expect(page.locator(".progress")).to_contain_text("Done: 550 model evaluations")


async def test_an_explanation_forms_and_what_if_answers(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        await expect(page.locator(".pictures .picture")).to_have_count(4)
        await expect(page.locator(".figures")).to_contain_text("0.700")
        await expect(page.locator(".figures")).to_contain_text("78 %")
        await expect(page.locator(".figures")).to_contain_text("0.93with 3 other seedsinsertion 0.650 to 0.720")
        await page.get_by_role("tab", name="Sufficient sets").click()
        await expect(page.locator(".card")).to_contain_text("One-minimal")
        await expect(page.locator(".card")).to_contain_text("Still holds after: 8-bit pixels.")
        await expect(page.locator(".card")).to_contain_text("Does not hold after: JPEG 95.")
        await expect(page.locator(".card")).to_contain_text("Still sufficient, but not minimal, after: JPEG 95.")
        await expect(page.locator(".card")).to_contain_text("at least 90 % of backgrounds (33 of 33 drawn)")
        await page.get_by_role("button", name="Try to prove it wrong").click()
        await expect(page.locator(".now")).to_contain_text("30 %")
        await page.get_by_role("button", name="Show all").click()
        await expect(page.locator(".now")).to_contain_text("90 %")
        board = page.locator(".board")
        await board.focus()
        await page.keyboard.press("Space")
        await expect(page.locator(".now")).to_contain_text("60 %")
        await page.keyboard.press("Control+z")
        await expect(page.locator(".now")).to_contain_text("90 %")
        await page.keyboard.press("Space")
        await expect(page.locator(".now")).to_contain_text("60 %")
        await page.get_by_role("button", name="Smallest change that flips it").click()
        await expect(page.locator(".what-if")).to_contain_text("Hiding 2 patches makes the model say off")
        assert "#/job/" in page.url
        # what `make bench-page` reads
        await expect(page.locator(".what-if ol.tries button").first).to_have_text("2 patches hidden")
        assert await page.evaluate("performance.getEntriesByName('first-event-drawn').length") == 1


async def test_of_several_images_each_is_one_click_away(serve, page, image, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(picture(64, 64).encoded)
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        await page.goto(address)
        await page.set_input_files("input[type=file]", [image, other])
        chosen = page.get_by_role("list", name="Chosen images").get_by_role("button")
        await expect(chosen).to_have_text([image.name, "other.png"])
        await expect(chosen.first).to_have_attribute("aria-pressed", "true")
        await chosen.last.click()
        await expect(chosen.last).to_have_attribute("aria-pressed", "true")
        await expect(page.locator(".top li")).to_have_count(2)


def explain_widely(run: Run) -> None:
    """A script: a graph that is wider than a phone."""
    run.send(started=pb.Started(worker="scripted", attempt=run.lease.job.attempt))
    patches = tuple(range(6))
    run.send(graph_node=pb.GraphNode(id="root", patches=pb.PatchSet(grid=7, patches=patches), score=0.9, root=True))
    for patch in patches:
        left = pb.PatchSet(grid=7, patches=[each for each in patches if each != patch])
        run.send(graph_node=pb.GraphNode(id=str(patch), patches=left, score=0.2))
        run.send(graph_edge=pb.GraphEdge(parent="root", child=str(patch), removed_patch=patch))
    run.settle(completed=pb.Completed(evaluations=550, model_digest="d" * 64, model_version="1"))


async def test_on_a_phone_the_roots_of_a_wide_graph_are_in_view(serve, page, image):
    async def refuse(route: Route) -> None:
        await route.fulfill(status=400, json={"code": "invalid_argument", "message": "it is too dark"})

    await page.route("**/Predict", refuse)
    await page.set_viewport_size({"width": 390, "height": 780})
    async with serve(inside=True) as (address, stack), stack.worker(explain_widely).at_work():
        await page.goto(address)
        await page.set_input_files("input[type=file]", image)
        await expect(page.get_by_role("alert")).to_contain_text("it is too dark")
        await expect(page.get_by_text("Asking the model")).to_have_count(0)
        await page.get_by_role("button", name="Explain", exact=True).click()
        await page.get_by_role("tab", name="Attention graph").click()
        await expect(page.locator(".edge")).to_have_count(6)
        scrolled = "frame => [frame.scrollLeft, (frame.scrollWidth - frame.clientWidth) / 2]"
        at, middle = await page.locator(".graph").evaluate(scrolled)
        assert middle > 100
        assert abs(at - middle) <= 1
        await page.get_by_role("button", name="zoom in").click()
        at, zoomed = await page.locator(".graph").evaluate(scrolled)
        assert zoomed > middle
        assert abs(at - zoomed) <= 2


async def test_a_graph_shows_removed_patches_and_confidence_as_text_and_colour(serve, page, tmp_path):
    """The image's red grows to the right and its green downwards, so a colour tells which patch is shown."""
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, :], ramp[:, None]
    Pillow.fromarray(pixels).save(tmp_path / "ramps.png")
    middle = """async image => {
        const drawn = new Image();
        drawn.src = image.href.baseVal;
        await drawn.decode();
        const paint = new OffscreenCanvas(drawn.width, drawn.height).getContext("2d");
        paint.drawImage(drawn, 0, 0);
        return [...paint.getImageData(drawn.width / 2, drawn.height / 2, 1, 1).data];
    }"""
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, tmp_path / "ramps.png")
        await page.get_by_role("tab", name="Attention graph").click()
        edge = page.get_by_role("img", name="removes row 3, column 4: 85 % → 20 %")
        red, green, blue, _ = await edge.locator("image").evaluate(middle)
        patch = 255 / 7  # each patch covers this much of either ramp
        assert abs(red - 3.5 * patch) < patch / 2
        assert abs(green - 2.5 * patch) < patch / 2
        assert blue < patch / 2
        root, child = page.locator(".node").first, page.locator(".node").last
        await expect(child.locator(".gone")).to_have_count(1)
        await edge.locator("image").hover()
        await expect(edge).to_have_class("edge live")
        await expect(root.locator(".mark")).to_have_count(1)
        await expect(child.locator(".mark")).to_have_count(0)
        await expect(child.locator(".gone.live")).to_have_count(1)
        await expect(page.locator(".legend")).to_contain_text("Confidence 0 %")
        await expect(root.locator("text")).to_have_text("85 %")
        await expect(child.locator("text")).to_have_text("20 %")
        brightness = [
            sum(map(int, re.findall(r"\d+", await node.locator(".confidence").get_attribute("fill") or "")))
            for node in (child, root)
        ]
        assert brightness[0] < brightness[1] / 2  # the scale differs in brightness, which all eyes see


async def test_a_graph_is_folded_and_its_nodes_are_near_what_is_tried(serve, page, image):
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        await page.get_by_role("tab", name="Attention graph").click()
        nodes = page.locator(".node")
        await expect(nodes).to_have_count(2)
        await nodes.last.focus()
        await expect(nodes.first.locator(".mark")).to_have_count(1)
        await expect(nodes.first.locator(".differs")).to_have_count(1)
        await nodes.first.focus()
        await page.keyboard.press("Enter")
        await expect(nodes).to_have_count(1)
        await expect(nodes).to_have_attribute("aria-expanded", "false")
        await nodes.click()
        await expect(nodes).to_have_count(2)
        assert await violations(page) == []
        await page.get_by_role("tab", name="What if?").click()
        near = page.locator(".near li")
        await expect(near.first).to_contain_text("47 patches differ")
        await near.first.get_by_role("button").click()
        await expect(near.first).to_contain_text("the same patches")
        await expect(near.first).to_have_class("same")


async def test_labels_files_and_warnings_are_text_whatever_they_hold(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        await expect(page.locator(".progress h2")).to_contain_text("<img src=x")
        await expect(page.locator(".status.warn").first).to_contain_text("<img src=x")
        assert await page.title() == "Sagittal"
        assert await page.locator("img").count() == 0


async def test_a_wrong_prediction_is_compared_with_the_class_it_should_have_had(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        await page.get_by_role("link", name="Compare…").click()
        first = page.get_by_role("region", name="First")
        await first.get_by_text("Change and explain again").click()
        await first.get_by_label("Intervals, from 4 other seeds").check()
        await page.get_by_label("class it should have had").fill("off")
        await page.get_by_role("button", name="Explain it beside").click()
        figures = page.locator(".paired")
        unmasked = figures.get_by_role("row", name=re.compile("^Unmasked score"))
        await expect(unmasked).to_have_text("Unmasked score90 %10 %\N{MINUS SIGN}80 %")
        insertion = figures.get_by_role("row", name=re.compile("^Insertion 0"))
        await expect(insertion).to_contain_text("0.650 to 0.7200.7000.650 to 0.750")
        # two rectangles of 2 x 3 cells, one lying and one standing, share their 2 x 2 cells
        await page.get_by_role("slider").fill("0.12")
        await expect(page.locator(".parting")).to_contain_text("The most salient 12 % of both: 50 % in common")
        await expect(page.locator(".parting")).to_contain_text("2 in both, 0 and 0 in one only")
        await expect(page.get_by_role("region", name="Second")).to_contain_text("off")
        link = page.url
        assert len(link.partition("#/compare/")[2].split("/")) == 2
        await page.goto("about:blank")
        await page.goto(link)
        await expect(unmasked).to_contain_text("80 %")


async def test_a_job_opens_by_its_link_and_shows_in_the_list(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        link = page.url
        await page.goto(address + "/#/jobs")
        await expect(page.locator(".rows li").first).to_contain_text("completed")
        await page.goto("about:blank")
        await page.goto(link)
        await expect(page.locator(".progress")).to_contain_text("Done: 550 model evaluations")
        await expect(page.locator(".top li")).to_have_count(2)  # its image came back with it


async def test_a_report_is_saved_and_names_in_it_are_text(serve, page, browser, image, tmp_path):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await explained(page, address, image)
        async with page.expect_download() as downloading:
            await page.get_by_role("button", name="Save report").click()
        report = tmp_path / "report.html"
        await (await downloading.value).save_as(report)
    # the service is gone: the report needs nothing but itself
    alone, requests = await browser.new_page(), []
    alone.on("request", lambda request: requests.append(request.url))
    await alone.goto(report.as_uri())
    await expect(alone.get_by_role("heading", level=1)).to_contain_text("Why <img src=x onerror=")
    await expect(alone.get_by_role("heading", level=1)).to_contain_text(r"\x1b[31m? 90.0%")
    await expect(alone.locator("body")).to_contain_text("Set 1: 2 patches")
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert (await alone.title()).startswith("Why <img src=x")
    assert await alone.locator("img:not([src^='data:'])").count() == 0


async def test_jobs_change_while_they_are_watched_and_a_deletion_can_be_undone(serve, page):
    go, asked = threading.Event(), Counter()

    def later(run: Run) -> None:
        go.wait(60)
        explain_in_full(run)

    # a deletion waits for as long as this test needs to undo it
    longer = "const real = setTimeout; window.setTimeout = (call, ms) => real(call, ms === 6000 ? 6e8 : ms)"
    await page.add_init_script(longer)
    page.on("request", lambda request: asked.update([request.url.rpartition("/")[2]]))
    async with serve() as (address, stack), stack.worker(later).at_work():
        await page.goto(address + "/#/jobs")
        await expect(page.get_by_text("No jobs yet.")).to_be_visible()  # beside the state of the models, at first
        await stack.explanations.SubmitExplanation(explanation_service_pb2.SubmitExplanationRequest(spec=spec()))
        row = page.locator(".rows li")
        await expect(row).to_contain_text("running")
        go.set()
        await expect(row).to_contain_text("completed")
        await expect(row.locator(".thumbnail img")).to_be_visible()
        assert asked["ListExplanations"] <= asked["WatchJobs"]  # one list for each stream: nothing is polled
        await row.get_by_role("button", name="Delete").click()
        await expect(row).to_contain_text("Deleted.")
        await row.get_by_role("button", name="Undo").click()
        await expect(row).to_contain_text("completed")
        await row.get_by_role("button", name="Delete").click()
        await page.get_by_role("link", name="Models").click()  # who leaves the list does not undo any more
        listed = explanation_service_pb2.ListExplanationsRequest()

        async def deleted() -> bool:
            return not (await stack.explanations.ListExplanations(listed)).explanations

        await eventually(deleted)


async def test_a_page_of_another_origin_explains_with_plain_fetch(serve, page, image):
    """The example: served at an origin that the page's settings name."""
    example = (ROOT / "examples" / "browser" / "index.html").read_text()
    with serving_text(example, "text/html") as elsewhere:
        origin = elsewhere.removesuffix("/metrics")
        async with serve(inside=True, origins=(origin,)) as (address, stack), stack.worker(explain_in_full).at_work():
            await page.goto(f"{origin}/?service={address}")
            await page.get_by_label("Model").fill("lamp")
            await page.set_input_files("#image", image)
            events = page.locator("#events li")
            await expect(events.first).to_contain_text("<img src=x")
            await expect(events.last).to_contain_text("completed: insertion")
            await page.get_by_label("Model").fill("candle")
            await page.set_input_files("#image", [])
            await page.set_input_files("#image", image)
            await expect(events.last).to_contain_text("candle")


async def test_batches_change_while_they_are_watched_and_can_be_controlled(serve, page):
    longer = "const real = setTimeout; window.setTimeout = (call, ms) => real(call, ms === 6000 ? 6e8 : ms)"
    await page.add_init_script(longer)
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        await page.goto(address + "/#/batches")
        await expect(page.get_by_role("heading", level=1)).to_have_text("No batches yet")
        await create(stack, expected=4)
        await add(stack, [*items(0, 1), item(NAME, target=pb.Target(index=7))])
        card = page.locator(".batch")
        await expect(card).to_contain_text("2 of 4 completed · 1 failed")  # its jobs ended: nothing was reloaded
        await expect(card).to_contain_text("1,100 evaluations")
        await card.get_by_text("Why items failed").click()
        await expect(card.locator(".failures")).to_contain_text(NAME)
        await expect(card.locator(".failures")).to_contain_text("INVALID_REQUEST")
        await expect(card.locator(".failures")).to_contain_text("index is 7")
        assert await violations(page) == []
        await card.get_by_role("button", name="Pause").click()
        await expect(card.locator(".state")).to_have_text("paused")
        await card.get_by_role("button", name="Resume").click()
        await expect(card.locator(".state")).to_have_text("open")
        await card.get_by_role("button", name="Retry").click()
        await expect(card.get_by_role("status")).to_contain_text(
            "1 item runs again when sent again: sagittal batch retry DIRECTORY"
        )
        await expect(card).not_to_contain_text("failed")
        await card.get_by_role("button", name="Cancel").click()
        await card.get_by_role("button", name="Undo").click()
        assert (await batch(stack)).state == BATCH_STATE_OPEN
        await card.get_by_role("button", name="Cancel").click()
        await page.get_by_role("link", name="Models").click()  # who leaves the list does not undo any more
        await eventually(lambda: is_cancelled(stack))


async def is_cancelled(stack: Stack) -> bool:
    return (await batch(stack)).state == BATCH_STATE_CANCELLED


async def test_models_of_every_page_are_listed(serve, page):
    async with serve() as (address, stack):
        for number in range(DEFAULT_PAGE):
            model = lamp()
            model.name = f"lamp-{number}"
            stack.registry.workers.publish(model)
        await page.goto(address + "/#/models")
        await expect(page.locator(".cards.wide > li")).to_have_count(DEFAULT_PAGE + 1)


async def test_a_model_shows_what_was_done_at_load_and_predicts(serve, page, image):
    loaded = lamp()
    loaded.checks.add(name="batch-agrees", passed=True, detail="largest difference 1e-7")
    loaded.checks.add(name="deterministic", detail="two runs differ")
    loaded.capabilities.supports_gradients = True
    loaded.capabilities.batch_size = 32
    loaded.capabilities.evaluations_per_second = 1234.4
    loaded.capabilities.optimizations.add(name="fold-batch-norm", applied=True, detail="49 layers folded")
    loaded.capabilities.optimizations.add(name="channels-last", detail="slower here")
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        stack.registry.workers.publish(loaded)
        await page.goto(address + "/#/models")
        card = page.locator(".cards.wide > li")
        for title, facts in {
            "Workers": ("scriptedready",),
            "Capabilities": ("Gradientsyes", "Images in a batch32", "Without gradient1,234 evaluations per second"),
            "Done at load": ("✓ fold-batch-norm49 layers folded", "\N{EN DASH} channels-lastslower here"),
            "Self-check": ("✓ batch-agreeslargest difference 1e-7", "✗ deterministictwo runs differ"),
        }.items():
            details = card.locator("details").filter(has_text=title)
            await details.locator("summary").click()
            for fact in facts:
                await expect(details.locator("dl > div").filter(has_text=fact)).to_be_visible()
        await card.locator("input[type=file]").set_input_files(image)
        top = card.get_by_role("group", name=f"Prediction for {image.name}").locator(".top li")
        await expect(top).to_contain_text(["<img src=x", "off10 %"])
        await expect(top.first).to_contain_text("90 %")
        assert await violations(page) == []
        photo = {"name": "a.heic", "mimeType": "", "buffer": b"ftypheic"}
        await card.locator("input[type=file]").set_input_files(photo)
        await expect(card.get_by_role("alert")).to_contain_text("Export the photo as JPEG")
        await expect(top).to_have_count(0)


async def test_a_page_that_nobody_sees_asks_for_no_models(serve, page):
    """Timers of this page run out at once, so that an update comes as soon as it may."""
    await page.add_init_script(
        "const real = setTimeout; window.setTimeout = (call, ms) => real(call, ms >= 1000 ? 50 : ms);"
        "Object.defineProperty(document, 'visibilityState', { get: () => window.seen ? 'visible' : 'hidden' })"
    )
    asked = Counter()
    page.on("request", lambda request: asked.update([request.url.rpartition("/")[2]]))
    async with serve() as (address, _):
        await page.goto(address)
        await expect(page.locator(".drop")).to_be_visible()
        await page.wait_for_timeout(300)
        assert asked["ListModels"] == 1
        await page.evaluate("window.seen = true; document.dispatchEvent(new Event('visibilitychange'))")
        async with page.expect_request("**/ListModels"):
            pass


async def test_a_stream_that_breaks_is_resumed(page, image):
    """The page's server restarts while a job runs: the page watches on from the last event that it has."""
    go = threading.Event()

    def slowly(run: Run) -> None:
        if run.lease.job.kind == JobKind.EXPLANATION:
            go.wait(60)
        explain_in_full(run)

    async with running() as stack, stack.worker(slowly).at_work():
        async with page_over(stack) as address:
            await page.goto(address)
            await page.set_input_files("input[type=file]", image)
            await page.get_by_role("button", name="Explain", exact=True).click()
            await expect(page.locator(".progress")).to_contain_text("Queued")
            await page.wait_for_url("**/#/job/*")
        await expect(page.locator(".progress")).to_contain_text("reconnecting")
        async with page_over(stack, port=int(address.rpartition(":")[2])):
            go.set()
            await expect(page.locator(".progress")).to_contain_text("Done: 550 model evaluations")


async def test_a_stream_resumes_after_the_service_restarts(page, image):
    """Another service, on the same socket and queue, continues the stream after the last event that the page has."""
    queue, go, watched = Queue(), threading.Event(), []
    folder = tempfile.TemporaryDirectory()  # the path of a socket has at most about 100 characters
    settings = quick_settings(listen=(f"unix://{folder.name}/service.sock",))

    def halfway(run: Run) -> None:
        if run.lease.job.kind == JobKind.EXPLANATION:
            run.send(started=pb.Started(worker="scripted", attempt=run.lease.job.attempt))
            run.send(progress=pb.Progress(fraction=0.25, evaluations=50, phase="optimise"))
            go.wait(600)
        explain_in_full(run)

    def note(request: Request) -> None:
        if request.url.endswith("/WatchExplanation"):
            message = (request.post_data_buffer or b"")[5:]  # after a byte of flags and the length
            watched.append(explanation_service_pb2.WatchExplanationRequest.FromString(message).after_sequence)

    page.on("request", note)
    async with queue, ScriptedWorker(queue.worker("scripted"), halfway).at_work(), AsyncExitStack() as services:
        services.enter_context(folder)
        services.callback(go.set)
        first = await services.enter_async_context(AsyncExitStack())
        stack = await first.enter_async_context(running(settings, Queue(queue.settings)))
        address = await services.enter_async_context(page_over(stack, address=settings.listen[0]))
        await page.goto(address)
        await page.set_input_files("input[type=file]", image)
        await page.get_by_role("button", name="Explain", exact=True).click()
        await expect(page.locator(".progress")).to_contain_text("optimise · 25 %")
        await first.aclose()
        await expect(page.locator(".progress")).to_contain_text("reconnecting")
        await services.enter_async_context(running(settings, Queue(queue.settings)))
        go.set()
        await expect(page.locator(".progress")).to_contain_text("Done: 550 model evaluations")
    assert watched[0] == 0
    assert watched[-1] > 0


async def test_cancel_on_the_page_cancels_the_job_in_the_service(serve, page, image):
    """While the job runs, and while it is still being submitted."""
    over, submitting = threading.Event(), asyncio.Event()

    def until_cancelled(run: Run) -> None:
        if run.lease.job.kind != JobKind.EXPLANATION:
            return explain_in_full(run)
        run.send(started=pb.Started(worker="scripted", attempt=1))
        while (reason := run.cancelled()) is None and not over.wait(0.01):
            pass
        return run.settle(JobState.CANCELLED, cancelled=pb.Cancelled(reason=reason or ""))

    async def hold(route: Route) -> None:
        await submitting.wait()
        await route.continue_()

    async with serve(inside=True) as (address, stack), stack.worker(until_cancelled).at_work():
        try:
            await page.goto(address)
            await page.set_input_files("input[type=file]", image)
            await page.get_by_role("button", name="Explain", exact=True).click()
            await expect(page.locator(".progress")).to_contain_text("start · 0 %")
            await page.get_by_role("button", name="Cancel").click()
            await expect(page.locator(".progress")).to_contain_text("Cancelled.")
            await page.route("**/SubmitExplanation", hold)
            await page.get_by_role("button", name="Explain", exact=True).click()
            await page.get_by_role("button", name="Cancel").click()
            submitting.set()
            await expect(page.locator(".progress")).to_contain_text("Cancelled.")
        finally:
            over.set()
        listed = await stack.explanations.ListExplanations(explanation_service_pb2.ListExplanationsRequest())
        states = [job.state for job in listed.explanations]
        assert states == [pb.JOB_STATE_CANCELLED] * 2


async def test_a_wrong_token_is_asked_for_again(serve, page):
    tokens = {hashlib.sha256(b"right").hexdigest(): Token(tenant="t", roles=("explain",))}
    async with serve(quick_settings(tokens=tokens)) as (address, _):
        await page.goto(address)
        await expect(page.get_by_role("heading", level=1)).to_have_text("This service asks for a token")
        await page.get_by_label("Bearer token").fill("wrong")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.get_by_role("alert")).to_contain_text("does not know this token")
        await page.get_by_label("Bearer token").fill("right")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator(".drop")).to_be_visible()


async def violations(page: Page) -> list[str]:
    """The rules of accessibility that a view breaks; in the dark theme, those of colours."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    found = []
    for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        await page.emulate_media(color_scheme=scheme)
        answer = await page.evaluate("options => axe.run(options)", {**options, "resultTypes": ["violations"]})
        broken = answer["violations"]
        found += [f"{page.url} {scheme}: {each['id']} {[node['target'] for node in each['nodes']]}" for each in broken]
    return found


async def test_no_view_breaks_a_rule_of_accessibility(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await page.goto(address)
        await expect(page.locator(".drop")).to_be_visible()
        found = await violations(page)
        await explained(page, address, image)
        found += await violations(page)
        for tab in ("Sufficient sets", "What if?"):
            await page.get_by_role("tab", name=tab).click()
            found += await violations(page)
        link = page.url
        for view, shown in (
            (link.replace("#/job", "#/compare"), "Change and"),
            ("#/jobs", "completed"),
            ("#/models", "lamp"),
        ):
            await page.goto(view if view.startswith("http") else f"{address}/{view}")
            await expect(page.locator("main")).to_contain_text(shown)
            found += await violations(page)
        assert found == []


#: Widths of a phone, a tablet and a wide screen, in pixels.
WIDTHS = (390, 820, 1440)

#: What differs from run to run: identifiers, times and durations.
CHANGING = re.compile(r"[0-9a-f]{32}|\d+/\d+/\d+, [\d:]+\s?[AP]M|\d+\.\d\ss\b")


async def test_ten_states_keep_their_structure_and_fit_three_widths(serve, page, image):
    """Compares roles, names and texts of each state with its file in `structure`; delete the file to write it again."""
    async with serve(inside=True) as (address, stack), stack.worker(explain_in_full).at_work():
        await page.goto(address)
        await keeps_structure(page, "start")
        await page.set_input_files("input[type=file]", {"name": "a.heic", "mimeType": "", "buffer": b"ftypheic"})
        await keeps_structure(page, "bad-file")
        await explained(page, address, image)
        await keeps_structure(page, "explain")
        link = page.url
        await page.get_by_role("tab", name="Sufficient sets").click()
        await keeps_structure(page, "sets")
        await page.get_by_role("tab", name="Attention graph").click()
        await keeps_structure(page, "graph")
        await page.get_by_role("tab", name="What if?").click()
        await keeps_structure(page, "what-if")
        await page.goto(link.replace("#/job", "#/compare"))
        await keeps_structure(page, "compare")
        await create(stack, expected=2)
        await add(stack, [item("broken", target=pb.Target(index=7))])
        for state in ("jobs", "batches", "models"):
            await page.goto(f"{address}/#/{state}")
            await keeps_structure(page, state)


async def keeps_structure(page: Page, state: str) -> None:
    """Fails if a state differs from its file, or is wider than the window."""
    stored = Path(__file__).with_name("structure") / f"{state}.yaml"
    if not stored.exists():
        await page.wait_for_timeout(3000)
        stored.write_text(await structure(page))
        warnings.warn(f"{stored.name} was missing, and is written: read it", stacklevel=1)
    expected = stored.read_text()

    async def equal() -> bool:
        return await structure(page) == expected

    try:
        await eventually(equal, LONGEST / 1000)
    except AssertionError:
        assert await structure(page) == expected  # shows the difference
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 800})
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.evaluate(wider) <= 0, f"{state} is wider than {width} pixels"


async def structure(page: Page) -> str:
    return CHANGING.sub("…", await page.locator("body").aria_snapshot()) + "\n"


async def test_the_keyboard_alone_suffices(serve, page, image):
    async with serve() as (address, stack), stack.worker(explain_in_full).at_work():
        await page.goto(address)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.set_input_files("input[type=file]", image)
        await expect(page.locator(".top li")).to_have_count(2)
        await page.get_by_role("button", name="Explain", exact=True).focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".progress")).to_contain_text("Done: 550 model evaluations")
        await expect(page.locator(".ask > button")).to_be_focused()  # the button that cancelled meanwhile
        await page.get_by_role("tab", name="Heatmap").focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("tab", name="Sufficient sets")).to_be_focused()
        await expect(page.locator(".card")).to_contain_text("One-minimal")
        await page.get_by_role("link", name="Jobs").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await expect(page).to_have_title("Jobs · Sagittal")


async def test_every_state_without_a_result_is_drawn(serve, page, tmp_path):
    files = {
        "photo.heic": (b"ftypheic" * 10, "Export the photo as JPEG"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Export it as PNG"),
        "large.png": (b"\0" * (50 * 2**20), "The file has 50.0 MB. Send an image of at most 32 MB."),
    }
    async with serve() as (address, stack):
        await page.goto(address)
        for name, (content, told) in files.items():
            (tmp_path / name).write_bytes(content)
            await page.set_input_files("input[type=file]", tmp_path / name)
            await expect(page.get_by_role("alert")).to_contain_text(told)
        await page.goto(f"{address}/#/job/{'0' * 32}")
        await expect(page.get_by_role("alert")).to_contain_text("This job no longer exists")
        await stack.service.stop()
        await page.goto("about:blank")
        await page.goto(address)
        await expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached. Retrying…")
        answer = {"status": 200, "content_type": "application/proto", "body": b""}  # a list of no models
        await page.route("**/ListModels", lambda route: route.fulfill(**answer))
        await page.reload()
        await expect(page.get_by_role("heading", level=1)).to_have_text("No model is registered yet")


async def test_concepts_are_named_merged_and_marked_and_each_change_can_be_undone(page, tmp_path):
    queue = Queue()
    concepts = Concepts(queue.settings, tmp_path)
    described = a_set("birds", "lamp")
    described.concepts[0].examples[0].image.encoded = picture(8, 8).encoded
    described.metrics.faithfulness_correlation = 0.875
    concepts.seed("default", described)
    settings = quick_settings(concepts={"directory": tmp_path})
    async with running(settings, queue) as stack, page_over(stack) as address:
        await page.goto(f"{address}/#/concepts")
        await page.get_by_role("link", name="birds").click()
        await expect(page.locator(".tiles")).to_contain_text("0.875")
        await expect(page.locator(".examples canvas")).to_have_count(1)
        name = page.get_by_role("textbox", name="x1")
        await name.fill(NAME)
        await name.press("Tab")
        undo = page.get_by_role("button", name="Undo")
        await expect(page.get_by_role("combobox").nth(1)).to_contain_text(f"x1 {NAME}")
        await page.get_by_label("several unrelated things").first.check()
        await expect(page.get_by_label("several unrelated things").first).to_be_checked()
        await page.get_by_label("Show together with").nth(1).select_option(label=f"x1 {NAME}")
        await expect(page.locator(".merged")).to_have_count(1)
        assert await violations(page) == []
        await undo.click()
        await expect(page.locator(".merged")).to_have_count(0)
        await undo.click()
        await expect(page.get_by_label("several unrelated things").first).not_to_be_checked()
        await undo.click()
        await expect(name).to_have_value("")
        await expect(undo).to_have_count(0)
        assert await page.title() == "Concepts · Sagittal"


async def test_the_system_is_shown_from_its_metrics(serve, page):
    text = """
sagittal_queue_depth{model="lamp",lane="interactive"} 3
sagittal_queue_oldest_seconds{model="lamp",lane="interactive"} 12.5
sagittal_queue_wait_seconds_bucket{le="1.0"} 0
sagittal_queue_wait_seconds_bucket{le="3.0"} 4
sagittal_queue_wait_seconds_bucket{le="+Inf"} 4
sagittal_insertion_auc_count{model="lamp",method="igos++"} 4
sagittal_insertion_auc_sum{model="lamp",method="igos++"} 3
"""
    with serving_text(text) as first, serving_text(text.replace("} 3", "} 2", 1)) as second:
        async with serve(metrics=(first, second, "http://127.0.0.1:1/metrics")) as (address, _):
            await page.goto(f"{address}/#/system")
            tiles = page.locator(".tiles > div")
            await expect(tiles.filter(has_text="Queued")).to_have_text("Queued3")  # each source reports the whole queue
            await expect(tiles.filter(has_text="Oldest")).to_contain_text("12.5 s")
            await expect(tiles.filter(has_text="Wait, median")).to_contain_text("2.0 s")
            await expect(page.locator(".status.warn")).to_contain_text("A source of metrics does not answer")
            await expect(page.get_by_role("row", name="lamp")).to_contain_text("0.750")
            assert await violations(page) == []
            served = await page.evaluate("fetch('/metrics.json').then(answer => answer.json())")
            assert [set(source) for source in served["sources"]] == [{"text"}, {"text"}, {"error"}]


@contextmanager
def serving_text(text: str, kind: str = "text/plain") -> Iterator[str]:
    """Serves a text at every path; yields an address of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()
