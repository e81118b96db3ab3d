"""Explanations are kept where experiments are: by the real packages where they are installed, offline."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scripted_service import JOB, whole_log

from sagittal.client import FailedPrecondition, MissingExtra, Preprocessing
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import parse_explanation
from sagittal.integrations import fiftyone as fiftyone_labels
from sagittal.integrations import mlflow as mlflow_records
from sagittal.integrations import wandb as wandb_records
from sagittal.integrations.records import images_of, metrics_of, tags_of, write_files
from sagittal.v1 import explanation_pb2 as pb

SQUASH = Preprocessing(56, 56, "bilinear", (0.5,) * 3, (0.25,) * 3, "RGB", "squash")
CROP = Preprocessing(56, 64, "bilinear", (0.5,) * 3, (0.25,) * 3, "RGB")
IMAGE = np.random.default_rng(4).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.fixture
def bare() -> Explanation:
    return parse_explanation(
        pb.Explanation(job_id=JOB, state=pb.JOB_STATE_COMPLETED, model="lamps", events=whole_log())
    )


@pytest.fixture
def explanation(bare) -> Explanation:
    return bare.with_image(IMAGE, preprocessing=CROP)


def test_the_figures_are_metrics_and_what_identifies_is_a_tag(explanation) -> None:
    assert metrics_of(explanation) == {
        "score": 0.75, "baseline_score": 0.25, "insertion": 0.4375, "deletion": 0.3125, "evaluations": 20.0,
        "relative_insertion": pytest.approx(0.4375 / 0.75), "relative_deletion": pytest.approx(0.3125 / 0.75),
        "seconds": 1.5, "sufficient_sets": 1.0, "smallest_set": 2.0,
    }  # fmt: skip
    assert tags_of(explanation)["target"] == "lamp"
    assert tags_of(explanation)["model_digest"] == "d1"


def test_the_files_hold_everything(explanation, tmp_path) -> None:
    names = [path.name for path in write_files(explanation, tmp_path)]
    assert names == ["explanation.json", "explanation.zip", "overlay.png", "sufficient-set-1.png"]
    assert Explanation.load(tmp_path / "explanation.zip") == explanation
    assert json.loads((tmp_path / "explanation.json").read_text())["target"]["label"] == "lamp"


def test_an_explanation_without_its_image_says_what_to_give(bare) -> None:
    for call in (lambda: list(images_of(bare)), lambda: fiftyone_labels.label_documents(bare)):
        with pytest.raises(FailedPrecondition, match="with_image"):
            call()


@pytest.mark.parametrize("package", ["mlflow", "wandb", "fiftyone"])
def test_a_missing_package_is_named_with_its_extra(explanation, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    calls = {
        "mlflow": lambda: mlflow_records.log_explanation(explanation, "one"),
        "wandb": lambda: wandb_records.log_explanation(None, explanation, "one"),
        "fiftyone": lambda: fiftyone_labels.add_labels({}, explanation),
    }
    with pytest.raises(MissingExtra, match=rf"sagittal\[{package}\]"):
        calls[package]()


def test_labels_lie_on_the_original_image(bare) -> None:
    found = fiftyone_labels.label_documents(bare.with_image(IMAGE, preprocessing=SQUASH))
    assert found["sagittal_classification"] == {"_cls": "Classification", "label": "lamp", "confidence": 0.75}
    assert found["sagittal_heatmap"]["map"].shape == (60, 90)
    boxes = [each["bounding_box"] for each in found["sagittal_sets"]["detections"]]
    assert boxes == [pytest.approx([column / 7, 1 / 7, 1 / 7, 1 / 7]) for column in (1, 2)]
    cropped = fiftyone_labels.label_documents(bare.with_image(IMAGE, preprocessing=CROP))
    left, top, width, height = cropped["sagittal_sets"]["detections"][0]["bounding_box"]
    side = 56 / 64 * 60
    assert (left * 90, top * 60) == pytest.approx(((90 - side) / 2 + side / 7, (60 - side) / 2 + side / 7))
    assert (width * 90, height * 60) == pytest.approx((side / 7, side / 7))
    padded = fiftyone_labels.label_documents(bare.with_image(IMAGE, preprocessing=replace(SQUASH, fit="pad")))
    box = padded["sagittal_sets"]["detections"][0]["bounding_box"]
    assert box == pytest.approx([1 / 7, 0, 1 / 7, 7 / 37]), "the padding's part of the patch is cut off"


def needs(package: str):
    return pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[{package}]'")


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow with its runs in files: mlflow-skinny brings no database."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    module = needs("mlflow")
    module.set_tracking_uri((tmp_path / "runs").as_uri())
    return module


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_metrics_and_artefacts(explanation, mlflow) -> None:
    with mlflow.start_run() as run:
        mlflow_records.log_explanation(explanation, "one")
    stored = mlflow.get_run(run.info.run_id)
    assert stored.data.metrics["one/insertion"] == 0.4375
    artefacts = mlflow.MlflowClient().list_artifacts(run.info.run_id, "explanations/one")
    assert {each.path.rsplit("/", 1)[-1] for each in artefacts} >= {"overlay.png", "explanation.zip", "tags.json"}


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_logs_means_and_a_table(explanation, mlflow) -> None:
    from sagittal.client import InvalidImage, Outcome

    class Known:
        def explain_many(self, images, **options):
            assert options == {"model": "lamps"}
            yield Outcome(key="good", explanation=explanation)
            yield Outcome(key="bad", error=InvalidImage("no image"))

    with mlflow.start_run() as run:
        metrics = mlflow_records.evaluate_classifier(Known(), {"good": IMAGE[:, :60], "bad": IMAGE}, model="lamps")
    assert (metrics["images"], metrics["failed"], metrics["mean_insertion"]) == (2.0, 1.0, 0.4375)
    assert mlflow.get_run(run.info.run_id).data.metrics["mean_insertion"] == 0.4375
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/explanations.json")
    assert [row[table["columns"].index("key")] for row in table["data"]] == ["bad", "good"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_metrics_images_and_an_artefact(explanation, tmp_path, monkeypatch) -> None:
    wandb = needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(project="test", dir=tmp_path) as run:
        wandb_records.log_explanation(run, explanation, "one")
        assert run.summary["one/insertion"] == 0.4375
        assert "one/overlay" in run.summary.keys()  # noqa: SIM118 - no mapping
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/one/overlay*.png"))


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_takes_the_labels(explanation) -> None:
    fiftyone = needs("fiftyone")
    sample = fiftyone.Sample(filepath="one.png")
    fiftyone_labels.add_labels(sample, explanation)
    assert sample["sagittal_classification"].label == "lamp"
    assert sample["sagittal_heatmap"].map.shape == (60, 90)
    assert len(sample["sagittal_sets"].detections) == 2
