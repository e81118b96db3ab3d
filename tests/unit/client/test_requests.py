"""What a caller asks is what goes over the wire."""

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from sagittal.client import (
    IGOS,
    AsyncClient,
    Baseline,
    Box,
    EvaluateMask,
    IGOSPlusPlus,
    InvalidImage,
    InvalidRequest,
    Method,
    Metrics,
    ModelInput,
    PatchSet,
    RobustnessTest,
)
from sagittal.client.images import encode_image, to_array, to_tensor
from sagittal.core.images import ImageLimits, decode
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import method_pb2, model_pb2

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["path", "text", "bytes", "memoryview", "pillow", "uint8", "float32", "float64"])
def test_every_form_of_a_picture_is_the_same_picture(tmp_path, form) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    forms = {
        "path": path,
        "text": str(path),
        "bytes": png(),
        "memoryview": memoryview(png()),
        "pillow": PIL.Image.fromarray(PIXELS),
        "uint8": PIXELS,
        "float32": PIXELS.astype(np.float32) / 255,
        "float64": PIXELS / 255,
    }
    assert np.array_equal(decode(encode_image(forms[form]), ImageLimits()), PIXELS)


def test_a_pillow_image_keeps_its_orientation_and_alpha() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    turned = PIL.Image.open(buffer)
    assert decode(encode_image(turned), ImageLimits()).shape == (5, 6, 3)
    clear = PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert (decode(encode_image(clear), ImageLimits()) == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 2.0),
        np.full((4, 4, 3), np.nan),
        ModelInput(np.full((3, 4, 4), np.inf)),
        ModelInput(np.zeros((4, 4, 3), np.float32)),
        42,
    ],
)
def test_what_is_no_picture_is_refused_with_its_field(image) -> None:
    with pytest.raises(InvalidImage) as caught:
        encode_image(image)
    assert caught.value.field == "spec.image"


def test_a_file_that_is_not_there_is_an_unreadable_image(client) -> None:
    with pytest.raises(InvalidImage, match=r"cannot read the image: .*no-such-file\.png"):
        client.explain("no-such-file.png", model="lamp")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_tensors_make_the_round_trip(dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = to_array(to_tensor(array))
    assert back.dtype == np.float32
    assert np.array_equal(back, array)
    back[0, 0] = 9  # the caller's own


def test_everything_asked_arrives(client, script, picture) -> None:
    client.submit(
        picture, model="lamp", model_version="2", method=IGOSPlusPlus(mask_size=28), target=4,
        baseline=Baseline(kind="image", image=picture), metrics=Metrics(
            protocol="pixel", boxes=[Box(1, 2, 3, 4)], predictability=200,
            robustness=RobustnessTest(delta=0.25, max_draws=7, images=[picture])
        ),
        seed=7, lane="batch", deadline=1.5, max_evaluations=100, request_id="mine", cache="bypass",
        partial_masks=True, progress_interval=0.25,
    )  # fmt: skip
    (spec,) = script.specs
    assert (spec.model, spec.model_version, spec.target.index, spec.seed) == ("lamp", "2", 4, 7)
    assert spec.method.igos_plus_plus.mask_size == 28
    assert (spec.baseline.kind, spec.baseline.HasField("image")) == (pb.BASELINE_KIND_IMAGE, True)
    assert (spec.metrics.curve_protocol, spec.metrics.boxes[0].bottom) == (pb.CURVE_PROTOCOL_PIXEL, 4)
    assert spec.metrics.predictability == 200
    robustness = spec.metrics.robustness
    assert (robustness.delta, robustness.confidence, robustness.max_draws) == (0.25, 0, 7)
    assert robustness.images == [spec.image]
    assert (spec.lane, spec.cache_policy, spec.partial_masks) == (pb.LANE_BATCH, pb.CACHE_POLICY_BYPASS, True)
    assert (spec.deadline.seconds, spec.deadline.nanos) == (1, 500_000_000)
    assert (spec.max_evaluations, spec.request_id, spec.progress_interval.nanos) == (100, "mine", 250_000_000)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"seed": -1}, "spec.seed"),
        ({"max_evaluations": 2**64}, "spec.max_evaluations"),
        ({"target": -1}, "spec.target.index"),
        ({"lane": "express"}, "spec.lane"),
        ({"cache": "maybe"}, "spec.cache_policy"),
        ({"baseline": "chalk"}, "spec.baseline.kind"),
        ({"deadline": float("nan")}, "spec.deadline"),
        ({"progress_interval": -1.0}, "spec.progress_interval"),
        ({"metrics": Metrics(protocol="voxel")}, "spec.metrics.curve_protocol"),
    ],
)
def test_what_cannot_be_asked_names_its_field(client, picture, wrong, field) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(picture, model="lamp", **wrong)
    assert caught.value.field == field


def test_a_misspelt_option_is_an_error(client, picture) -> None:
    with pytest.raises(InvalidRequest, match="no option 'sede'; there are: baseline"):
        client.submit(picture, model="lamp", sede=1)


def catalogue() -> model_pb2.Model:
    number = model_pb2.ParameterDescription(name="speed", type="float")
    switch = model_pb2.ParameterDescription(name="bright", type="bool")
    return model_pb2.Model(
        name="lamp",
        methods=[
            model_pb2.MethodDescription(name="igos++", field="igos_plus_plus"),
            model_pb2.MethodDescription(
                name="minimal-sufficient-explanations", field="minimal_sufficient_explanations", aliases=["mse"]
            ),
            model_pb2.MethodDescription(name="sag", field="structured_attention_graph"),  # as earlier workers list it
            model_pb2.MethodDescription(name="new-thing", field="custom", parameters=[number, switch]),
        ],
    )


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("igos++", "igos_plus_plus"),
        ("IGOS++", "igos_plus_plus"),
        ("igos-plus-plus", "igos_plus_plus"),
        ("igos_plus_plus", "igos_plus_plus"),
        ("mse", "minimal_sufficient_explanations"),
        ("minimal-sufficient-explanations", "minimal_sufficient_explanations"),
        ("sag", "structured_attention_graph"),
        ("structured-attention-graph", "structured_attention_graph"),
    ],
)
def test_methods_go_by_their_usual_names(client, script, picture, name, field) -> None:
    script.model = catalogue()
    client.submit(picture, model="lamp", method=name)
    assert script.specs[0].method.WhichOneof("method") == field


@pytest.mark.parametrize(
    "name",
    [
        "igos",
        "igos+",
        "igos++",
        "rise",
        "grad-cam",
        "mse",
        "sag",
        "ors",
        "ordered-region-search",
        "occlusion",
        "xnn",
        "minimal-sufficient-explanations",
        "structured-attention-graph",
    ],
)
def test_methods_of_the_api_are_known_before_a_worker_is(client, script, picture, name) -> None:
    client.submit(picture, model="lamp", method=name)
    assert script.specs[0].method.WhichOneof("method")


def test_parameters_given_as_text_are_typed(client, script, picture) -> None:
    script.model = catalogue()
    method = Method("igos++", mask_size="14", l1_weight="0.5", optimizer="line-search", protocol="authors")
    client.submit(picture, model="lamp", method=method)
    sent = script.specs[0].method.igos_plus_plus
    assert (sent.mask_size, sent.l1_weight) == (14, 0.5)
    assert (sent.optimizer, sent.protocol) == (method_pb2.OPTIMIZER_LINE_SEARCH, method_pb2.PROTOCOL_AUTHORS)


def test_a_method_that_only_workers_know_is_sent_by_name(client, script, picture) -> None:
    script.model = catalogue()
    client.submit(picture, model="lamp", method=Method("new-thing", speed="2.5", bright="yes"))
    custom = script.specs[0].method.custom
    assert (custom.name, custom.parameters["speed"], custom.parameters["bright"]) == ("new-thing", 2.5, True)


@pytest.mark.parametrize(
    ("method", "field", "named"),
    [
        (Method("igoss"), "spec.method", "new-thing"),
        (Method("igos++", maks_size=3), "spec.method.igos_plus_plus.maks_size", "mask_size"),
        (Method("igos++", mask_size="big"), "spec.method.igos_plus_plus.mask_size", "integer"),
        (Method("igos++", mask_size=-1), "spec.method.igos_plus_plus.mask_size", "-1"),
        (Method("igos++", l1_weight="x"), "spec.method.igos_plus_plus.l1_weight", "number"),
        (Method("igos++", optimizer="luck"), "spec.method.igos_plus_plus.optimizer", "line-search"),
        (Method("new-thing", sped=1), "spec.method.custom.parameters.sped", "speed"),
        (Method("new-thing", bright="dim"), "spec.method.custom.parameters.bright", "true or false"),
    ],
)
def test_a_wrong_method_or_parameter_says_what_there_is(client, script, picture, method, field, named) -> None:
    script.model = catalogue()
    with pytest.raises(InvalidRequest, match=named) as caught:
        client.submit(picture, model="lamp", method=method)
    assert caught.value.field == field


def test_a_heatmap_of_the_callers_travels_as_a_tensor(client, script, picture) -> None:
    client.submit(picture, model="lamp", method=Method("evaluate-mask", heatmap=np.eye(4, dtype=np.float32)))
    assert list(script.specs[0].method.evaluate_mask.heatmap.shape) == [4, 4]
    client.submit(picture, model="lamp", method=EvaluateMask(heatmap=to_tensor(np.eye(4, dtype=np.float32))))
    assert script.specs[1].method == script.specs[0].method


def test_a_typed_method_without_parameters_is_still_that_method(client, script, picture) -> None:
    client.submit(picture, model="lamp", method=IGOS())
    assert script.specs[0].method.WhichOneof("method") == "igos"


def test_many_images_each_have_their_outcome(client, script, tmp_path) -> None:
    images = {"good": PIXELS, "array": np.zeros((2, 2)), "file": tmp_path / "none.png", "more": PIXELS}
    outcomes = {each.key: each for each in client.explain_many(images, model="lamp", in_flight=1)}
    assert outcomes.keys() == images.keys()
    assert outcomes["good"].explanation.insertion == 0.4375
    assert outcomes["more"].explanation.mask.shape == (7, 7)
    assert isinstance(outcomes["array"].error, InvalidImage)
    assert isinstance(outcomes["file"].error, InvalidImage)
    assert {spec.lane for spec in script.specs} == {pb.LANE_BATCH}


class SlowFile(os.PathLike):
    """A file of a slow store: it can be read only while seven others are read too."""

    def __init__(self, path: Path, others: threading.Barrier) -> None:
        self.path, self.others = path, others

    def __fspath__(self) -> str:
        self.others.wait(timeout=120)
        return str(self.path)


def test_many_images_are_read_in_parallel_and_no_more_ahead_than_in_flight(client, tmp_path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    taken, together = 0, threading.Barrier(8)

    def files() -> Iterator[SlowFile]:
        nonlocal taken
        for _ in range(32):
            taken += 1
            yield SlowFile(path, together)

    outcomes = client.explain_many(files(), model="lamp", in_flight=8)
    first = next(outcomes)
    assert taken <= 16
    assert all(each.explanation for each in (first, *outcomes))
    assert taken == 32


def test_a_broken_call_of_many_puts_what_is_left_again(client, script) -> None:
    script.breaks = [(0, grpc.StatusCode.UNAVAILABLE, "gone")]
    outcomes = list(client.explain_many([PIXELS, PIXELS], model="lamp"))
    assert sorted(each.key for each in outcomes) == ["0", "1"]
    assert all(each.explanation for each in outcomes)
    ids = [spec.request_id for spec in script.specs]
    assert len(set(ids)) == len(ids)


async def test_many_images_over_asyncio(address, options, script) -> None:
    async with AsyncClient(address, options=options) as client:
        outcomes = [each async for each in client.explain_many([PIXELS] * 5, model="lamp", in_flight=2)]
    assert sorted(each.key for each in outcomes) == list("01234")
    assert len(script.specs) == 5


def test_regions_are_scored_in_order(client, job_id) -> None:
    scores = client.score_regions([PatchSet(7, (1, 2)), PatchSet(7, (1,))], job_id=job_id)
    assert [each.score for each in scores.scores] == [0.5, 0.25]
    with pytest.raises(InvalidRequest, match="job_id"):
        client.score_regions([PatchSet(7, (1,))])


def test_jobs_are_listed_over_all_pages(client) -> None:
    assert [job.job_id for job in client.list()] == ["job-0-0", "job-0-1", "job-1-0", "job-1-1"]
    with pytest.raises(InvalidRequest, match="queued"):
        list(client.list(states=["asleep"]))
