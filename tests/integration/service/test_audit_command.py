"""`sagittal audit` on a real service: labelled images in, confirmed findings out, and nothing is computed twice."""

import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import structlog
from audited_world import Image, draw, red_probability, saliency
from click.testing import CliRunner, Result

from sagittal.cli.app import app
from sagittal.core.jobs import JobKind
from sagittal.imaging.reading import read_image
from sagittal.v1 import explanation_pb2, model_pb2, model_service_pb2, tensor_pb2

from .support import Run, Stack, lamp

COUNT, MARKED = 12, 7

SETS = "minimal-sufficient-explanations"


@pytest.fixture(autouse=True)
def _service_logs_elsewhere() -> Iterator[None]:
    """Keeps the log of the service, which runs in this process, out of what a command is captured to print."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


@pytest.fixture
def data(tmp_path) -> tuple[Path, dict[bytes, Image]]:
    """A folder with masks beside it, and its images by their pixels."""
    known = {}
    for each in draw(COUNT, marked=MARKED):
        for name, pixels in (("images", each.pixels), ("masks", each.square)):
            path = tmp_path / name / each.key
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(path)
        known[each.pixels.tobytes()] = each
    (tmp_path / "images" / "red" / "damaged.png").write_bytes(b"no image")
    return tmp_path, known


def register(stack: Stack) -> None:
    """Publishes a model of red and blue whose input is the image."""
    model = lamp()
    del model.labels[:]
    model.labels.extend(["red", "blue"])
    model.preprocessing.CopyFrom(
        model_pb2.Preprocessing(
            input_size=32, resize=32, fit="squash", interpolation="bilinear", mean=[0.0] * 3, std=[1.0] * 3,
            channel_order="RGB", layout="NCHW",
        )
    )  # fmt: skip
    model.methods.add(name=SETS, field="minimal_sufficient_explanations")
    stack.registry.workers.publish(model)


def answering(known: dict[bytes, Image]):
    """Returns a script: the classifier that reads the mark, and heatmaps of what it reads."""

    def answer(run: Run) -> None:
        lease = run.lease
        pixels = image_of(lease.images["image"])
        red = red_probability(pixels, reads_mark=True)
        scores = [red, 1 - red]
        top = [explanation_pb2.ClassScore(index=index, score=scores[index]) for index in np.argsort(scores)[::-1]]
        target = top[0]
        if lease.job.kind == JobKind.EXPLANATION:
            spec = explanation_pb2.ExplanationSpec.FromString(lease.request)
            target = next(each for each in top if each.index == spec.target.index)
            heat = saliency(known[pixels.tobytes()]).astype(np.float16)
            mask = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT16, shape=heat.shape, data=heat.tobytes())
            run.send(prediction=explanation_pb2.Prediction(target=target, top=top))
            run.send(mask=explanation_pb2.Mask(saliency=mask, final=True))
        else:
            assert model_service_pb2.PredictRequest.FromString(lease.request).top == 2
            run.send(prediction=explanation_pb2.Prediction(target=target, top=top))
        run.settle(completed=explanation_pb2.Completed(evaluations=7, model_version="1", method="igos++"))

    return answer


def answering_with_sets(known: dict[bytes, Image]):
    """Returns a script: two sufficient sets for red images, which share a patch, and one larger one for blue images."""

    def answer(run: Run) -> None:
        lease = run.lease
        red = red_probability(image_of(lease.images["image"]), reads_mark=False)
        top = [explanation_pb2.ClassScore(index=index, score=score) for index, score in enumerate((red, 1 - red))]
        top.sort(key=lambda each: -each.score)
        target = top[0]
        run.send(prediction=explanation_pb2.Prediction(target=target, top=top))
        if lease.job.kind == JobKind.EXPLANATION:
            for patches in ([0, 1], [1, 2]) if target.index == 0 else (list(range(8)),):
                patch_set = explanation_pb2.PatchSet(grid=4, patches=patches)
                run.send(sufficient_set=explanation_pb2.SufficientSet(patches=patch_set, score=0.9, diverse=True))
        run.settle(
            completed=explanation_pb2.Completed(
                evaluations=7, model_version="1", method=SETS, parameters_json='{"max_overlap": 1}'
            )
        )

    return answer


def image_of(encoded: bytes) -> np.ndarray:
    """Returns the pixels of an image of a job."""
    image = tensor_pb2.Image.FromString(encoded)
    if image.WhichOneof("source") == "encoded":
        return read_image(image.encoded)
    return np.frombuffer(image.pixels.data, np.uint8).reshape(tuple(image.pixels.shape))


async def audit(stack: Stack, *arguments: object) -> Result:
    runner = CliRunner(env={"SAGITTAL_ADDRESS": f"127.0.0.1:{stack.port}"})
    return await asyncio.to_thread(runner.invoke, app, ["audit", "run", *map(str, arguments)])


async def test_a_data_set_is_audited_and_running_it_again_computes_nothing(stack, data) -> None:
    folder, known = data
    register(stack)
    out = folder / "out"
    arguments = (folder / "images", "--masks", folder / "masks", "--model", "lamp", "--out", out)
    async with stack.worker(answering(known)).at_work() as worker:
        estimated = await audit(stack, *arguments, "--estimate")
        assert (estimated.exit_code, worker.leases, out.exists()) == (0, [], False)
        first = await audit(stack, *arguments, "--fail-on", "high", "--junit", folder / "junit.xml")
        computed = len(worker.leases)
        again = await audit(stack, *arguments)
    assert (first.exit_code, again.exit_code) == (1, 0), first.output
    assert len(worker.leases) == computed
    assert "1 items run again" in again.output
    assert f"{2 * COUNT + 1} images" in first.output or "nothing is known" in first.output
    assert "then up to 3 model evaluations for each image, 216 for each candidate" in first.output
    assert "not explained: red/damaged.png" in first.output
    found = json.loads((out / "findings.json").read_text())
    assert found["findings"][0]["group"] == "red"
    assert found["findings"][0]["box"] == [24, 24, 32, 32]
    assert found["outside"]["red"] > 0.4 > found["outside"]["blue"]
    assert found["sufficient_sets"] is None
    assert list(found["failures"]) == ["red/damaged.png"]
    rows = list(csv.DictReader((out / "cleaning.csv").read_text().splitlines()))
    marked = [row for row in rows if row["finding"] == found["findings"][0]["id"]]
    assert sorted(Path(row["image"]).name for row in marked) == [f"{number:03d}.png" for number in range(MARKED)]
    assert {(row["left"], row["top"], row["right"], row["bottom"]) for row in marked} == {("24", "24", "32", "32")}
    with PIL.Image.open(out / marked[0]["mask"]) as mask:
        assert np.asarray(mask).sum() == 64
    page = (out / "report.html").read_text()
    assert "1. red: regions that recur at one place" in page
    assert "http" not in page.replace("http-equiv", "")
    assert '<failure message="red:' in (folder / "junit.xml").read_text()


async def test_an_audit_of_sufficient_sets_states_the_statistics_of_the_data_set(stack, data) -> None:
    folder, known = data
    register(stack)
    out = folder / "out"
    async with stack.worker(answering_with_sets(known)).at_work():
        done = await audit(stack, folder / "images", "--model", "lamp", "--method", SETS, "--out", out)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "findings.json").read_text())["sufficient_sets"]
    assert found["parameters"] == {"max_overlap": 1}
    assert found["whole"]["images"] == 2 * COUNT
    red, blue = found["groups"]["red"], found["groups"]["blue"]
    # on 4x4 patches, 2 patches are 12.5 % of the area, and 8 are half of it
    for group, least in ((red, 0.15), (blue, 0.5)):
        assert [each["mean"] for each in group["locality"]] == [
            float(each["at"] >= least) for each in group["locality"]
        ]
    assert [each["mean"] for each in red["diverse"]] == [1, 2, 2]
    assert [each["mean"] for each in found["whole"]["diverse"]] == [1, 1.5, 1.5]
    assert "of which no two share more patches" in (out / "report.html").read_text()


async def test_a_model_that_is_wrong_everywhere_is_an_error_with_its_remedy(stack, data) -> None:
    folder, known = data
    register(stack)
    (folder / "classes.json").write_text('{"red": "blue", "blue": "red"}')
    arguments = (folder / "images", "--model", "lamp", "--out", folder / "out", "--classes", folder / "classes.json")
    async with stack.worker(answering(known)).at_work():
        refused = await audit(stack, *arguments)
    assert refused.exit_code == 2
    assert f"lamp gives 0 of {2 * COUNT} images their class" in refused.output
    assert "check that the labels name the model's classes" in refused.output
