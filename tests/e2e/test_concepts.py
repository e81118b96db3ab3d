"""Concept sets through real processes: fitted, listed, named, explained by; and what goes wrong."""

import io
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from e2e_stack import PATIENCE, Program, Stack, wait_until
from safetensors import safe_open
from safetensors.numpy import load_file

from sagittal.client import (
    AlreadyExists,
    AsyncClient,
    Client,
    Concepts,
    ConceptSet,
    FitProgress,
    InvalidRequest,
    JobCancelled,
    NotFound,
)
from sagittal.client.errors import SagittalError
from sagittal.process.embedded import EmbeddedValkey

MODEL = """
[[models]]
name = "colours"
source = { kind = "python", factory = "known_models:sees_colours" }
labels = ["warm", "cold", "grey"]
preprocessing = { input_size = 16, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""

QUICK = {"concepts": 2, "epochs": 30, "hidden": 8, "seeds": 2}


def picture(number: int) -> bytes:
    """Returns a PNG whose halves have colours of their own."""
    random = np.random.default_rng(number)
    halves = random.integers(0, 256, (1, 2, 3), dtype=np.uint8)
    noise = random.integers(0, 8, (16, 16, 3), dtype=np.uint8)
    pixels = np.minimum(halves.repeat(16, 0).repeat(8, 1), 240) + noise
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(number) for number in range(40)]


HALVES = {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0)}
"""Annotated parts of a picture."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation whose worker keeps concept sets."""
    directory = tmp_path_factory.mktemp("concepts")
    dataset = directory / "pictures"
    dataset.mkdir()
    for number, each in enumerate(PICTURES):
        (dataset / f"{number:02}.png").write_bytes(each)
    (dataset / "07.png").write_bytes(b"no picture")
    (dataset / "parts.json").write_text(json.dumps({f"{number:02}.png": HALVES for number in range(0, 40, 2)}))
    with EmbeddedValkey() as valkey:
        installation = Stack(directory, valkey.url)
        try:
            installation.start_service(
                SAGITTAL_FITS__MAX_IMAGES="50", SAGITTAL_CONCEPTS__DIRECTORY=str(directory / "sets")
            )
            start_worker(installation)
            installation.wait_for_model("colours")
            yield installation
        finally:
            installation.stop()


def name_of(weights: Path) -> str:
    """Returns the name of the set that a file of weights says it is of."""
    with safe_open(weights, framework="np") as opened:
        return str(opened.metadata()["name"])


def start_worker(installation: Stack) -> Program:
    directory = installation.directory
    return installation.start_worker(
        models=MODEL,
        SAGITTAL_CONCEPTS__DIRECTORY=str(directory / "sets"),
        SAGITTAL_CONCEPTS__DATASETS=json.dumps({"colours": str(directory / "pictures")}),
        SAGITTAL_CHECKPOINT_SECONDS="0",
    )


@pytest.fixture(scope="module")
def client(installation: Stack) -> Iterator[Client]:
    """A client of it."""
    with Client(installation.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def fitted(client: Client) -> ConceptSet:
    """A set for the first class."""
    return client.concepts.fit(PICTURES, name="fitted", model="colours", targets=["warm"], **QUICK)


def test_a_fit_tells_its_three_terms_and_ends_with_its_set(client: Client):
    told = []
    found = client.concepts.fit(
        [*PICTURES, b"no picture", "no-such-file.png"],
        name="told",
        model="colours",
        targets=["warm", 1],
        on_progress=told.append,
        **QUICK,
    )
    assert [told[0].phase, told[1].phase] == ["queued", "started"]
    assert any(each.epoch and each.faithfulness > 0 and each.reconstruction > 0 for each in told)
    assert found.targets == (0, 1)
    assert found.target_labels == ("warm", "cold")
    assert found.layer == "flatten"
    assert found.images == 40
    assert [index for index, _, _ in found.skipped] == [40, 41]
    assert "image 40" in found.skipped[0][2]
    assert "image 41.encoded is empty" in found.skipped[1][2]
    assert "IMAGES_SKIPPED" in [reason for reason, _ in found.warnings]
    assert found.quality.held_out == 8
    assert found.quality.faithfulness_correlation > 0.9
    assert found.quality.class_agreement is not None
    assert 0 < found.quality.stability <= 1


def test_a_set_is_listed_without_its_examples_and_returned_with_them(client: Client, fitted: ConceptSet):
    listed = {each.name: each for each in client.concepts.list()}
    assert not listed["fitted"].concepts[0].examples
    whole = client.concepts.get("fitted", model="colours")
    assert whole.concepts[0].examples[0].picture == fitted.concepts[0].examples[0].picture
    example = whole.concepts[0].examples[0]
    assert PIL.Image.open(io.BytesIO(example.picture)).size == (16, 16)
    assert example.heatmap is not None
    values = [each.value for each in whole.concepts[0].examples]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("method", ["excitation-bp", "igos"])
def test_an_image_is_explained_by_parts_that_add_up(client: Client, fitted: ConceptSet, method: str):
    asked = Concepts(concept_set="fitted", heatmap_method=method)
    explanation = client.explain(PICTURES[3], model="colours", method=asked)
    said = explanation.concept_prediction
    assert said.target.label == "warm"
    assert sum(part.contribution for part in explanation.concepts) == pytest.approx(said.predicted, abs=1e-4)
    assert said.gap == pytest.approx(said.predicted - said.output, abs=1e-5)
    assert [part.index for part in explanation.concepts] == [0, 1]
    assert all(part.heatmap is not None and part.heatmap.max() <= 1 for part in explanation.concepts)


def test_names_are_kept_with_the_set_and_shown_in_explanations(client: Client):
    client.concepts.fit(PICTURES, name="named", model="colours", targets=[0], **QUICK)
    asked = Concepts(concept_set="named")
    before = client.explain(PICTURES[3], model="colours", method=asked)
    changed = client.concepts.update("named", model="colours", rename={0: "left red"}, mixed={1: True})
    assert changed.concepts[0].name == "left red"
    assert changed.concepts[1].mixed
    after = client.explain(PICTURES[3], model="colours", method=asked)
    assert [before.concepts[0].name, after.concepts[0].name] == ["", "left red"]
    client.concepts.update("named", model="colours", merge={1: 0})
    merged = client.explain(PICTURES[3], model="colours", method=asked)
    (part,) = merged.concepts
    assert part.contribution == pytest.approx(merged.concept_prediction.predicted, abs=1e-4)
    client.concepts.update("named", model="colours", merge={1: 1})
    assert client.concepts.get("named", model="colours").concepts[1].merged_into is None
    client.concepts.delete("named", model="colours")
    with pytest.raises(NotFound, match=r"colours has no concept set 'named'; it has: .*"):
        client.concepts.get("named", model="colours")


def test_a_set_is_fitted_to_a_directory_of_the_workers(client: Client):
    found = client.concepts.fit(name="here", model="colours", targets=[0], dataset="colours", **QUICK)
    assert found.quality.annotated > 0
    assert found.images == 39
    assert [name for _, name, _ in found.skipped] == ["07.png"]
    assert found.concepts[0].examples[0].name.endswith(".png")


def test_locality_is_measured_where_images_carry_annotated_parts(client: Client):
    found = client.concepts.fit(
        PICTURES, name="parts", model="colours", targets=["warm"], parts=[HALVES, {}] * 20, **QUICK
    )
    quality = found.quality
    assert 0 < quality.annotated < quality.held_out
    assert 0 <= quality.locality <= np.log(2) + 1e-6
    assert 1 <= quality.parts_covered <= 2 + 1e-6
    for concept in found.concepts:
        assert sum(share for _, share in concept.parts) == pytest.approx(1, abs=1e-4)
        assert {name for name, _ in concept.parts} == {"left", "right"}
        assert concept.locality is not None


def test_the_same_seed_fits_the_same_set(client: Client, fitted: ConceptSet):
    again = client.concepts.fit(PICTURES, name="again", model="colours", targets=["warm"], **QUICK)
    assert [each.weights for each in again.concepts] == [each.weights for each in fitted.concepts]
    assert again.quality == fitted.quality


async def test_the_asyncio_client_does_the_same(client: Client):
    async with AsyncClient(client.address) as other:
        found = await other.concepts.fit(PICTURES, name="async", model="colours", targets=[2], **QUICK)
        assert "async" in [each.name async for each in other.concepts.list("colours")]
        await other.concepts.update("async", model="colours", rename={0: "bright"})
        assert (await other.concepts.get("async", model="colours")).concepts[0].name == "bright"
        await other.concepts.delete("async", model="colours")
    assert found.targets == (2,)


def test_a_fit_can_be_cancelled(client: Client):
    told = []
    failures = []

    def fit() -> None:
        try:
            client.concepts.fit(
                PICTURES, name="long", model="colours", targets=[0], on_progress=told.append, epochs=100_000
            )
        except SagittalError as error:
            failures.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    wait_until(lambda: any(each.epoch for each in told), "an epoch")
    client.cancel(told[0].job_id)
    thread.join(PATIENCE)
    assert [type(error) for error in failures] == [JobCancelled]
    assert "long" not in [each.name for each in client.concepts.list("colours")]


WRONG = {
    "a layer that does not exist": ({"layer": "head"}, InvalidRequest, "settings.layer", "give one of conv"),
    "a name that is no name": ({"name": "a/b"}, InvalidRequest, "settings.name", "letters, digits"),
    "a class that does not exist": ({"targets": ["blue"]}, InvalidRequest, "settings.targets[0].label", "not a label"),
    "no class": ({"targets": []}, InvalidRequest, "settings.targets", "empty"),
    "too many x-features": ({"concepts": 33}, InvalidRequest, "settings.fit.concepts", "1 to 32"),
    "a model that does not exist": ({"model": "none"}, NotFound, "settings.model", "no model 'none'"),
    "no images": ({"images": []}, InvalidRequest, "image", "there are no images"),
    "fewer images than x-features": ({"images": PICTURES[:3]}, InvalidRequest, "image", "there are 3 images"),
    "constant features": ({"images": PICTURES[:1] * 20}, InvalidRequest, "image", "the same for every image"),
    "too many images": ({"images": PICTURES[:1] * 51}, InvalidRequest, "image", "more than 50 images"),
    "a dataset that does not exist": (
        {"images": [], "dataset": "none"}, InvalidRequest, "settings.dataset", "this worker has colours",
    ),
    "a part that is not within its image": (
        {"parts": [{"eye": (0.5, 0.0, 0.4, 1.0)}] * 40}, InvalidRequest, "annotated_parts[0].left",
        "of image 0 has left 0.5 and right 0.4",
    ),
    "parts of other images": ({"parts": [{}]}, InvalidRequest, "parts", "parts of 1 images for 40 images"),
    "a name that is taken": ({"name": "fitted"}, AlreadyExists, "settings.name", "set `replace`"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(client: Client, fitted: ConceptSet, case: str):
    given, error, field, message = WRONG[case]
    options = {"images": PICTURES, "name": "wrong", "model": "colours", "targets": [0], **QUICK, **given}
    with pytest.raises(error, match=message) as caught:
        client.concepts.fit(options.pop("images"), **options)
    assert caught.value.field == field


def test_a_set_that_is_not_there_is_named_with_those_that_are(client: Client, fitted: ConceptSet):
    with pytest.raises(NotFound, match=r"no concept set 'none'; it has: .*fitted"):
        client.explain(PICTURES[0], model="colours", method=Concepts(concept_set="none"))


def test_a_class_that_the_set_does_not_predict_is_refused(client: Client, fitted: ConceptSet):
    with pytest.raises(InvalidRequest, match="the concept set 'fitted' predicts 0"):
        client.explain(PICTURES[0], model="colours", method=Concepts(concept_set="fitted"), target="cold")


def test_the_command_line_fits_lists_shows_and_names(client: Client, tmp_path: Path, capsys):
    from sagittal.cli.app import app

    for number, each in enumerate(PICTURES):
        (tmp_path / f"{number:02}.png").write_bytes(each)

    def run(*arguments: str) -> str:
        app(["concepts", *arguments, "--address", client.address], standalone_mode=False)
        return capsys.readouterr().out

    (tmp_path / "parts.json").write_text(json.dumps({f"{number:02}.png": HALVES for number in range(40)}))
    asked = ("fit", "cli", str(tmp_path), "--model", "colours", "--target", "warm", "-n", "2", "--epochs", "20")
    fit = run(*asked, "--parts", str(tmp_path / "parts.json"))
    assert "faithfulness r=" in fit
    assert "parts covered, on 8 annotated images" in fit
    assert "looks at" in fit
    assert "colours  cli  2 concepts" in run("list")
    assert "x1  left half" in run("name", "cli", "1", "left half", "--model", "colours")
    run("show", "cli", "--model", "colours", "-o", str(tmp_path / "sheets"))
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["cli-x1.png", "cli-x2.png"]
    with PIL.Image.open(sheets[0]) as sheet:
        assert sheet.width > 300
    run("delete", "cli", "--model", "colours")


def test_a_fit_whose_worker_is_killed_goes_on_at_another_and_ends_as_if_nothing_had_happened(
    client: Client, installation: Stack
):
    options = {**QUICK, "epochs": 2_000, "seeds": 1}
    whole = client.concepts.fit(PICTURES, name="whole", model="colours", targets=[0], **options)
    first, told, successors = installation.programs[-1], [], []

    def kill(progress: FitProgress) -> None:
        told.append(progress)
        if not successors and sum(each.epoch > 0 for each in told) == 2:
            first.stop(signal.SIGKILL)
            successors.append(start_worker(installation))

    resumed = client.concepts.fit(PICTURES, name="resumed", model="colours", targets=[0], on_progress=kill, **options)
    assert [each.phase for each in told].count("started") == 2
    assert '"job-resumed"' in successors[0].text
    for mine, theirs in zip(resumed.concepts, whole.concepts, strict=True):
        assert mine.weights == pytest.approx(theirs.weights, rel=1e-3)
    for name, value in asdict(whole.quality).items():  # some are None
        mine = getattr(resumed.quality, name)
        assert mine == (value if value is None else pytest.approx(value, rel=1e-3))
    files = (installation.directory / "sets" / "files").glob("*.safetensors")
    weights = [load_file(path) for path in files if name_of(path) in ("resumed", "whole")]
    assert len(weights) == 2
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)
