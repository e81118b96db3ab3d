"""What the commands print, write and return."""

import hashlib
import io
import json

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from scripted_service import JOB, failure

from sagittal.cli.app import app
from sagittal.client import Preprocessing
from sagittal.client.gathering import parse_explanation
from sagittal.client.images import to_tensor
from sagittal.v1 import explanation_pb2 as pb


def test_explain_writes_its_files(run, picture, tmp_path) -> None:
    out = tmp_path / "out"
    result = run("explain", picture, "--model", "lamp", "-o", out)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "explanation.json").read_text())
    assert all((out / name).is_file() for name in document["files"].values())
    mask = np.load(out / "mask.npy", allow_pickle=False)
    assert (mask.dtype, mask.shape) == (np.float32, (7, 7))
    with PIL.Image.open(out / "overlay.png") as overlay, PIL.Image.open(out / "summary.png") as summary:
        assert overlay.size == (56, 56)
        assert summary.width > 1000
    assert {curve["kind"] for curve in json.loads((out / "curves.json").read_text())} == {"insertion", "deletion"}
    assert (out / "graph.svg").read_text().startswith("<?xml")
    assert document["sufficient_sets"][0]["patches"] == [[1, 1], [1, 2]]
    assert document["sufficient_sets"][0]["top"] == {"index": 3, "label": "lamp", "score": 0.75}
    assert document["graph"]["edges"] == [{"parent": "300", "child": "100", "removed_patch": [1, 2]}]


def test_json_is_all_there_is_on_standard_output(run, picture) -> None:
    result = run("explain", picture, "--model", "lamp", "--json")
    document = json.loads(result.stdout)
    assert document["target"] == {"index": 3, "label": "lamp"}
    assert {
        "job_id", "model", "model_digest", "method", "parameters", "target", "score", "baseline_score",
        "insertion", "deletion", "relative_insertion", "relative_deletion",
        "evaluations", "gradient_evaluations", "seconds", "seed", "warnings", "files",
    } <= document.keys()  # fmt: skip
    assert "optimise" in result.stderr


def test_what_was_found_is_told_with_what_it_took(run, script, picture) -> None:
    completed = script.log[-1].completed
    told = run("explain", picture, "--model", "lamp").stdout
    assert "explained lamp by igos++ on lamp: 20 evaluations in 1.5 s\n" in told
    assert "a sufficient set of 2 patches\n" in told
    assert "insertion 0.438, relative to the unmasked score 0.58 (high is good)\n" in told
    assert "deletion 0.312, relative to the unmasked score 0.42 (low is good)\n" in told
    completed.truncated, completed.truncated_by = True, "evaluations"
    told = run("explain", picture, "--model", "lamp").stdout
    assert "20 evaluations in 1.5 s, ended early by its budget of evaluations\n" in told


def test_predictability_is_asked_for_and_told(run, script, picture) -> None:
    assert "predictability" not in run("explain", picture, "--model", "lamp").stdout
    completed = script.log[-1].completed
    completed.predictability_auroc, completed.predictability_balanced_accuracy = 0.9375, 0.8125
    result = run("explain", picture, "--model", "lamp", "--predictability", 200)
    assert script.specs[-1].metrics.predictability == 200
    assert "predictability 0.938 AUROC, balanced accuracy 81%\n" in result.stdout
    document = json.loads(run("explain", picture, "--model", "lamp", "--json").stdout)
    assert (document["predictability_auroc"], document["predictability_balanced_accuracy"]) == (0.9375, 0.8125)


def test_a_tested_certificate_is_asked_for_and_told(run, script, picture) -> None:
    found = next(event.sufficient_set for event in script.log if event.HasField("sufficient_set"))
    found.certificate.robust.CopyFrom(ROBUST)
    result = run("explain", picture, "--model", "lamp", "--robust")
    line = (
        "holds 8-bit; does not hold JPEG 95; still sufficient, but not minimal: JPEG 95; "
        "sufficient on at least 87% of backgrounds (39 of 40 drawn)"
    )
    assert f"  2 patches: {line}\n" in result.stdout
    assert script.specs[-1].metrics.HasField("robustness")
    document = json.loads(run("explain", picture, "--model", "lamp", "--json").stdout)
    robust = document["sufficient_sets"][0]["certificate"]["robust"]
    assert robust["alterations"][1] == {
        "alteration": "jpeg", "sufficient": True, "minimal": False, "score": 0.75, "removal_score": 0.625,
    }  # fmt: skip
    assert robust["minimal"] == {"at_least": 0.5, "held": 30, "draws": 40}
    assert robust["backgrounds"] == [{"kind": "noise", "draws": 40, "sufficient": 39, "minimal": 30}]
    assert not script.specs[-1].metrics.HasField("robustness")


def test_a_measured_stability_is_asked_for_and_told(run, script, picture) -> None:
    place = next(number for number, event in enumerate(script.log) if event.HasField("curve"))
    found = script.log[place].stability
    found.runs, found.rank_correlation, found.unstable = 4, 0.25, True
    found.insertion.low, found.insertion.high = 0.5, 0.75
    found.deviation.CopyFrom(to_tensor(np.full((7, 7), 0.125, np.float16)))
    result = run("explain", picture, "--model", "lamp", "--stability", 3)
    line = "stability: rank correlation 0.25 with 3 other seeds; insertion 0.500 to 0.750 (unstable)"
    assert f"{line}\n" in result.stdout
    assert script.specs[-1].metrics.stability == 3
    document = json.loads(run("explain", picture, "--model", "lamp", "--json").stdout)
    assert document["stability"] == {
        "runs": 4, "rank_correlation": 0.25, "lowest_rank_correlation": 0, "unstable": True, "confidence": 0,
        "insertion": [0.5, 0.75], "deletion": None, "mean_deviation": 0.125,
    }  # fmt: skip


def test_a_surrogate_is_told_by_its_size_and_error(run, script, picture) -> None:
    place = next(number for number, event in enumerate(script.log) if event.HasField("curve"))
    found = script.log[place].surrogate
    found.occlusions.CopyFrom(to_tensor(np.zeros((3, 2, 2), np.float16)))
    found.scores.CopyFrom(to_tensor(np.zeros(3, np.float16)))
    found.relevance.CopyFrom(to_tensor(np.zeros((2, 2), np.float16)))
    found.noise, found.usual_error = 0.25, 0.0625
    told = run("explain", picture, "--model", "lamp").stdout
    assert "surrogate: from 3 occlusions, usual error 6% of the unmasked score\n" in told
    document = json.loads(run("explain", picture, "--model", "lamp", "--json").stdout)
    assert document["surrogate"] == {"occlusions": 3, "grid": 2, "noise": 0.25, "usual_error": 0.0625}


ROBUST = pb.Robustness(
    alterations=[
        {"alteration": pb.ALTERATION_KIND_ROUNDING, "sufficient": True, "minimal": True, "score": 0.75},
        {"alteration": pb.ALTERATION_KIND_JPEG, "sufficient": True, "score": 0.75, "removal_score": 0.625},
    ],
    sufficient={"at_least": 0.875, "held": 39, "draws": 40},
    minimal={"at_least": 0.5, "held": 30, "draws": 40},
    confidence=0.95,
    backgrounds=[{"kind": "noise", "draws": 40, "sufficient": 39, "minimal": 30}],
)


def test_names_and_messages_of_the_service_do_not_drive_the_terminal(run, script, picture) -> None:
    evil = "\x1b]0;owned\x07\x9b2J"
    script.model.version = evil
    script.log[-1].completed.truncated, script.log[-1].completed.truncated_by = True, evil
    results = [run("explain", picture, "--model", "lamp"), run("models"), run("models", "show", "lamp")]
    script.refuse = failure(5, "UNKNOWN_MODEL")
    script.refuse.message = evil
    results.append(run("explain", picture, "--model", "lamp"))
    for result in results:
        assert not {"\x1b", "\x07", "\x9b"} & set(result.output)
        assert "owned" in result.output


def test_the_wait_for_a_worker_is_said(run, picture) -> None:
    assert "waiting for a worker for model lamp" in run("explain", picture, "--model", "lamp").stderr


def test_parameters_go_along(run, script, picture) -> None:
    run("explain", picture, "--model", "lamp", "--mask-size", 14, "--set", "iterations=3", "--target", "2", "--seed", 5)
    (spec,) = script.specs
    assert (spec.method.igos_plus_plus.mask_size, spec.method.igos_plus_plus.iterations) == (14, 3)
    assert (spec.target.index, spec.seed) == (2, 5)


def test_models_predict_and_jobs(run) -> None:
    assert "lamp  version 1 (latest)  4 classes  1 worker ready" in run("models").stdout
    assert "--set mask_size" in run("models", "show", "lamp").stdout
    assert json.loads(run("models", "show", "lamp", "--json").stdout)["ready_workers"] == 1
    assert run("list").stdout.count("running") == 4
    assert len(json.loads(run("list", "--json", "--limit", "3").stdout)) == 3
    assert "cancelled" in run("cancel", JOB).stdout
    assert "deleted" in run("delete", JOB).stdout
    assert f"again-{JOB}" in run("retry", JOB).stdout
    assert run("list", "--reason", "JOB_BURIED").stdout.endswith("failed     lamp    JOB_BURIED\n")
    assert json.loads(run("get", JOB).stdout)["insertion"] == 0.4375
    assert "insertion 0.438" in run("watch", JOB).stderr


def test_a_report_is_one_file_from_a_job_or_from_a_stored_explanation(run, script, picture, tmp_path) -> None:
    pixels = PIL.Image.open(picture).resize((56, 56))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    script.images = dict.fromkeys((1, 2, 3), buffer.getvalue())
    result = run("report", JOB, "-o", tmp_path / "job.html")
    assert result.exit_code == 0, result.output
    report = (tmp_path / "job.html").read_text(encoding="utf-8")
    assert report.count("data:image/jpeg") == 6  # seen and hidden; input, overlay, the salient part and the rest
    assert hashlib.sha256(buffer.getvalue()).hexdigest() in report
    script.images = {}
    run("report", JOB, "-o", tmp_path / "without.html")
    assert "The image is no longer kept" in (tmp_path / "without.html").read_text(encoding="utf-8")
    seen = Preprocessing(56, 64, "bilinear", (0.5,) * 3, (0.5,) * 3, "RGB")
    stored = parse_explanation(pb.Explanation(job_id=JOB, state=pb.JOB_STATE_COMPLETED, events=script.log))
    stored.with_image(picture, preprocessing=seen).save(tmp_path / "stored")
    result = run("report", tmp_path / "stored", "-o", tmp_path / "file.html", "--address", "127.0.0.1:1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "file.html").read_text(encoding="utf-8").count("data:image/jpeg") == 6


def test_a_report_is_drawn_from_the_directory_of_an_explanation_and_from_its_json(run, picture, tmp_path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.html"
    run("explain", picture, "--model", "lamp", "-o", out)
    reports = set()
    for given in (out, out / "explanation.json", out / "explanation.zip"):
        result = run("report", given, "-o", report, "--address", "127.0.0.1:1")
        assert result.exit_code == 0, result.output
        reports.add(report.read_text(encoding="utf-8"))
    assert "data:image/jpeg" in reports.pop()
    assert not reports
    (out / "explanation.zip").unlink()
    result = run("report", out / "explanation.json", "-o", report)
    assert result.exit_code == 2
    assert "has no explanation.zip" in result.output


def test_predict_lists_classes(run, picture) -> None:
    assert run("predict", picture, "--model", "lamp").stdout == " 75.00%  lamp\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["explain", "PICTURE", "--model", "lamp", "--method", "magic"], 2, "igos++"),
        (["explain", "PICTURE", "--model", "lamp", "--set", "maks_size=3"], 2, "mask_size"),
        (["explain", "PICTURE", "--model", "lamp", "--set", "nonsense"], 2, "KEY=VALUE"),
        (["explain", "PICTURE", "--model", "lamp", "--baseline", "chalk"], 2, "expected blur"),
        (["explain", "no-such-file.png"], 2, "does not exist"),
        (["explain"], 2, "Missing argument"),
        (["list", "--state", "asleep"], 2, "asleep"),
        (["models", "--address", "example.com:1", "--token", "t"], 2, "unencrypted"),
    ],
)
def test_wrong_use_is_code_2_and_says_what_is_right(run, picture, arguments, code, text) -> None:
    result = run(*[picture if each == "PICTURE" else each for each in arguments])
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_is_no_picture_is_said_before_anything_is_sent(run, script, tmp_path) -> None:
    text = tmp_path / "text.png"
    text.write_text("hello")
    result = run("explain", text, "--model", "lamp")
    assert (result.exit_code, script.specs) == (2, [])
    assert "text.png" in result.stderr


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (failure(5, "UNKNOWN_MODEL"), 2),
        (failure(9, "UNSUPPORTED"), 1),
        (failure(8, "QUEUE_FULL", retry_after=0.9), 1),
        (failure(13, "MODEL_FAILED"), 1),
    ],
    ids=lambda each: getattr(each, "message", each),
)
def test_a_refusal_is_a_line_and_a_code(run, script, picture, status, code) -> None:
    script.refuse = status
    result = run("predict", picture, "--model", "lamp")
    assert result.exit_code == code
    assert result.stderr.startswith("sagittal: no")
    assert len(result.stderr.splitlines()) <= 2


def test_nobody_at_the_address_is_code_3_with_a_remedy(picture) -> None:
    result = CliRunner().invoke(app, ["models", "--address", "127.0.0.1:1"])
    assert result.exit_code == 3
    assert "127.0.0.1:1" in result.stderr
    assert "sagittal up" in result.stderr
