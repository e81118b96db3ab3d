"""What an explanation shows of itself, and what it keeps."""

import io
import json
import re
import sys
import zipfile
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from scripted_service import JOB, SALIENCY, whole_log

from sagittal.client import (
    Explanation,
    FailedPrecondition,
    InvalidRequest,
    JobCancelled,
    LiveDisplay,
    MissingExtra,
    ModelInput,
    PatchSet,
    Preprocessing,
    Table,
)
from sagittal.client.gathering import Gathering, parse_explanation
from sagittal.client.parsing import parse_event
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import model_pb2

CROP = Preprocessing(56, 64, "bilinear", (0.5,) * 3, (0.25,) * 3, "RGB")
GENERATOR = np.random.default_rng(5)


def message(**changes) -> pb.Explanation:
    return pb.Explanation(job_id=JOB, state=pb.JOB_STATE_COMPLETED, model="lamps", events=whole_log(), **changes)


@pytest.fixture
def explanation() -> Explanation:
    return parse_explanation(message())


@pytest.fixture
def picture() -> np.ndarray:
    return GENERATOR.integers(0, 256, (60, 90, 3), np.uint8)


def test_an_explanation_is_told_in_300_characters(explanation) -> None:
    text = repr(explanation)
    assert "'lamp' 75.0%" in text
    assert "igos++ on lamps@1" in text
    assert "insertion 0.438" in text
    assert JOB in text
    long = replace(explanation, model="m" * 500, job_id="j" * 500)
    long = replace(long, completed=replace(long.completed, method="x" * 500, model_version="v" * 500))
    label = replace(long.prediction.target, label="l" * 500)
    long = replace(long, prediction=replace(long.prediction, target=label))
    assert len(repr(long)) <= 300


def test_an_event_is_told_without_its_numbers(explanation) -> None:
    assert repr(explanation.masks[0]) == "Mask(saliency=array(7, 7), final=True, index=0, signed=False)"


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (61, 61), (500, 333)])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_mask_lies_on_the_image_where_the_model_saw_it(explanation, shape, fit) -> None:
    """A coloured square, found again in the model's input, is marked on the original."""
    image = np.zeros((*shape, 3), np.uint8)
    row, column = shape[0] // 2 + 3, shape[1] // 2 - 5
    image[row - 4 : row + 4, column - 4 : column + 4] = 255
    drawn = explanation.with_image(image, preprocessing=replace(CROP, fit=fit))
    seen = drawn.image.view("black", 0.0).picture.mean(2)
    mask = replace(explanation.masks[0], saliency=(seen / max(seen.max(), 1e-6)).astype(np.float32))
    placed = replace(drawn, masks=(mask,)).saliency_on_image()
    assert placed.shape == shape
    marked = np.argwhere(np.nan_to_num(placed) > 0.5).mean(0)
    assert np.abs(marked - (row - 0.5, column - 0.5)).max() < 1.0
    share = 56 / 64 * min(shape)
    outside = np.isnan(placed).sum() / placed.size
    assert outside == (0 if fit != "crop" else pytest.approx(1 - share**2 / (shape[0] * shape[1]), abs=0.05))


def test_what_the_model_did_not_see_is_faint_and_an_empty_mask_paints_nothing(explanation, picture) -> None:
    drawn = replace(explanation, masks=(replace(explanation.masks[0], saliency=np.zeros((7, 7), np.float32)),))
    overlay = np.asarray(drawn.with_image(picture, preprocessing=CROP).overlay())
    assert overlay.shape == picture.shape
    assert np.array_equal(overlay[30, 45], picture[30, 45])
    assert len(set(overlay[0, 0].tolist())) == 1
    assert overlay[0, 0, 0] >= 178


def test_patches_and_heatmaps_are_drawn_like_masks(explanation, picture) -> None:
    drawn = explanation.with_image(picture[:, :60], preprocessing=replace(CROP, fit="squash"))
    kept = np.asarray(drawn.overlay(PatchSet(2, (3,))))
    assert np.array_equal(kept[30:, 30:], picture[30:, 30:60])
    assert (kept[:30, :30].min(), kept.shape) >= (178, (60, 60, 3))
    assert drawn.overlay(np.eye(3, dtype=np.float32), longest=20).size == (20, 20)


def test_a_models_input_is_drawn_as_it_is(explanation) -> None:
    values = np.full((3, 56, 56), 2.0, np.float32)
    drawn = explanation.with_image(ModelInput(values), preprocessing=CROP)
    assert (drawn.image.pixels == 255).all()
    assert not np.isnan(drawn.saliency_on_image()).any()


def test_without_an_image_or_a_place_for_it_the_error_says_what_to_give(explanation, picture) -> None:
    with pytest.raises(FailedPrecondition, match="with_image"):
        explanation.overlay()
    with pytest.raises(InvalidRequest, match="preprocessing="):
        explanation.with_image(picture)
    with pytest.raises(FailedPrecondition, match="no final mask 4: the explanation has 1"):
        explanation.with_image(picture[:, :60]).overlay(4)


def test_an_explanation_is_equal_after_it_was_stored_and_read(explanation, picture, tmp_path) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, "JPEG")
    drawn = explanation.with_image(buffer.getvalue(), preprocessing=CROP, baseline=picture)
    found = Explanation.load(drawn.save(tmp_path / "one.explanation"))
    assert found == explanation
    assert found.image.source == drawn.image.source
    assert found.image.baseline == drawn.image.baseline
    assert found.image.preprocessing == CROP
    assert np.array_equal(np.asarray(found.overlay()), np.asarray(drawn.overlay()))


def test_a_job_that_failed_is_equal_after_it_was_stored_and_read(tmp_path) -> None:
    events = [whole_log()[0], pb.ExplanationEvent(job_id=JOB, sequence=2, cancelled=pb.Cancelled(reason="requested"))]
    cancelled = parse_explanation(pb.Explanation(job_id=JOB, state=pb.JOB_STATE_CANCELLED, events=events))
    found = Explanation.load(cancelled.save(tmp_path / "one"))
    assert found == cancelled
    assert isinstance(found.error, JobCancelled)


def test_every_field_is_stored(explanation, tmp_path) -> None:
    """The document is the tree of dataclasses: none of its fields is left out."""
    with zipfile.ZipFile(explanation.save(tmp_path / "one")) as archive:
        stored = json.loads(archive.read("explanation.json"))["explanation"]
    assert set(stored) == set(Explanation.__dataclass_fields__)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x80\x04N."])
def test_another_file_is_refused(tmp_path, content) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"no file that Explanation\.save wrote") as refused:
        Explanation.load(path)
    assert refused.value.field == "path"


def test_a_damaged_file_is_refused_wherever_it_is_damaged(explanation, tmp_path) -> None:
    """Every third byte in turn, among them those of compressed data, of sizes and of flags."""
    whole = explanation.with_image(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one").read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            Explanation.load(path)
        except InvalidRequest:
            refused += 1
    assert refused > len(whole) / 6


@pytest.mark.parametrize("path", [5, None, b"one", ["one"]])
def test_what_is_no_path_is_refused(explanation, path) -> None:
    for call in (explanation.save, Explanation.load):
        with pytest.raises(InvalidRequest, match="expected the path of a file") as refused:
            call(path)
        assert refused.value.field == "path"


def test_a_stored_array_is_never_unpickled(explanation, tmp_path) -> None:
    path = explanation.save(tmp_path / "one")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    parts["arrays/0.npy"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(InvalidRequest, match="pickle"):
        Explanation.load(path)


def test_the_html_has_image_overlay_curves_sets_and_certificate(explanation, picture) -> None:
    text = explanation.with_image(picture, preprocessing=CROP)._repr_html_()
    assert text.count("data:image/jpeg;base64,") == 3  # the image, the overlay and the set
    assert "<polyline" in text
    assert "insertion 0.438, relative" in text
    assert "subset-minimal, 2 sets checked" in text
    assert "The baseline hides too little." in text
    assert "attention graph: 2 nodes, 1 edges, 1 roots" in text
    assert len(text) < 200_000


def test_the_html_needs_no_image_and_escapes_what_it_is_given(explanation) -> None:
    target = replace(explanation.prediction.target, label="<script>alert(1)</script>")
    text = replace(explanation, prediction=replace(explanation.prediction, target=target))._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "saliency, 0 to 1" in text


def test_everything_is_one_figure_and_the_graph_another(explanation, picture) -> None:
    drawn = explanation.with_image(picture, preprocessing=CROP)
    titles = [axes.get_title(loc="left") for axes in drawn.plot().axes]
    assert {"What the model saw", "Overlay", "Saliency", "Is it right? Insertion and deletion"} <= set(titles)
    assert "Sufficient set 1: 2 patches" in titles
    assert len(drawn.plot_graph().axes[0].get_images()) == 2
    assert drawn.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(FailedPrecondition, match="has no graph"):
        replace(drawn, graph=None).plot_graph()


def test_noise_is_not_claimed_to_be_the_jobs(explanation, picture) -> None:
    drawn = explanation.with_image(picture, preprocessing=CROP)
    assert drawn.view().exact
    noisy = replace(drawn, prediction=replace(drawn.prediction, baseline="noise"))
    assert not noisy.view().exact
    assert any("other noise than the job's" in axes.get_xlabel() for axes in noisy.plot().axes)


def test_showing_draws_html_in_a_notebook_and_else_opens_the_overlay(explanation, picture, monkeypatch) -> None:
    shown = []
    drawn = explanation.with_image(picture, preprocessing=CROP)
    monkeypatch.setattr(PIL.Image.Image, "show", lambda image, title: shown.append((image.size, title)))
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    drawn.show()
    assert shown == [((90, 60), repr(drawn))]
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", shown.append)
    drawn.show()
    assert shown[1] is drawn


def test_an_explanation_is_plain_values_for_json(explanation) -> None:
    found = json.loads(json.dumps(explanation.to_dict()))
    assert found["target"] == {"index": 3, "label": "lamp"}
    assert found["sufficient_sets"][0]["certificate"]["level"] == "subset-minimal"
    assert found["graph"]["edges"] == [{"parent": "300", "child": "100", "removed_patch": [1, 2]}]


def test_a_graph_is_one_of_networkx(explanation) -> None:
    networkx = pytest.importorskip("networkx")
    graph = explanation.graph.to_networkx()
    assert isinstance(graph, networkx.DiGraph)
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.edges["300", "100"] == {"removed_patch": 9}
    assert graph.nodes["300"]["root"]


def test_many_explanations_are_a_table(explanation) -> None:
    table = Table([explanation, replace(explanation, job_id="other")])
    assert [row["job_id"] for row in table] == [JOB, "other"]
    assert "insertion" in str(table)
    assert "<td" in table._repr_html_()
    frame = table.to_pandas()
    assert list(frame["insertion"]) == [0.4375, 0.4375]
    assert frame.loc[0, "smallest_set"] == 2


def test_jobs_and_models_are_tables(client) -> None:
    assert "lamps" in str(Table(client.models())) or len(Table(client.models()))
    jobs = Table(client.list())
    assert {"job_id", "state", "created"} <= set(jobs.columns)
    with pytest.raises(InvalidRequest, match="expected jobs, models, explanations or outcomes"):
        Table([3])


def test_the_client_attaches_the_image_that_it_sent(client, script, picture) -> None:
    for each in script.log:
        if each.HasField("prediction"):
            each.prediction.preprocessing.MergeFrom(model_pb2.Preprocessing(input_size=60, resize=60, fit="squash"))
    found = client.explain(picture, model="lamps")
    assert np.array_equal(found.image.pixels, picture)
    assert found.overlay().size == (90, 60)


def test_a_missing_package_is_named_with_its_extra(explanation, monkeypatch) -> None:
    for name in ("pandas", "networkx", "IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, None)
    for call, package in (
        (Table([explanation]).to_pandas, "pandas"),
        (explanation.graph.to_networkx, "networkx"),
        (LiveDisplay, "IPython"),
    ):
        with pytest.raises(MissingExtra, match=rf"requires {package}.*sagittal\[notebook\]"):
            call()


def test_an_explanation_is_drawn_while_it_forms(monkeypatch, picture) -> None:
    shown = []

    class Handle:
        def update(self, found):
            shown.append(found._repr_html_())

    class Display:
        @staticmethod
        def display(found, *, display_id):
            shown.append(found._repr_html_())
            return Handle()

    monkeypatch.setattr("sagittal.client.live.import_extra", lambda _: Display)
    live = LiveDisplay(picture[:, :60], interval=0.0)
    for event in whole_log():
        live(parse_event(event))
    assert len(shown) == len(whole_log())
    forming = [text for text in shown if re.search("optimise 50%", text)]
    assert forming
    assert "running" in shown[2]
    assert "insertion 0.438" in shown[-1]
    assert live.explanation.state == "completed"
    assert np.array_equal(live.explanation.mask, SALIENCY.astype(np.float32))


def test_a_mask_that_forms_is_shown_until_the_final_one_comes(monkeypatch) -> None:
    class Display:
        @staticmethod
        def display(found, *, display_id):
            return None

    monkeypatch.setattr("sagittal.client.live.import_extra", lambda _: Display)
    live = LiveDisplay(interval=3600.0)
    events = [parse_event(each) for each in whole_log()]
    for event in events[:5]:
        live(event)
    assert not live.explanation.mask.any()
    live(events[5])
    assert live.explanation.mask.any()


def test_a_gathering_knows_when_it_is_complete() -> None:
    gathering = Gathering()
    assert not gathering.completed
    gathering.add(parse_event(whole_log()[-1]))
    assert gathering.completed
