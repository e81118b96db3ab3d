"""Reports: one HTML document that needs nothing else, and in which every text is text."""

import shlex
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scripted_service import JOB, SALIENCY, whole_log

from sagittal.client import Explanation, JobCancelled, Preprocessing
from sagittal.client.gathering import parse_explanation
from sagittal.client.images import to_tensor
from sagittal.v1 import explanation_pb2 as pb

HOSTILE = "<img src=x onerror=alert(1)>\"'\x1b]0;owned\x07\x9b\u202eevil\u2028&amp;"
SEEN = Preprocessing(56, 64, "bilinear", (0.5,) * 3, (0.5,) * 3, "RGB")


class Document(HTMLParser):
    """The tags, attributes and text of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def explained(log: list[pb.ExplanationEvent]) -> Explanation:
    found = parse_explanation(pb.Explanation(job_id=JOB, state=pb.JOB_STATE_COMPLETED, model="lamps", events=log))
    pixels = np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)
    return found.with_image(pixels, preprocessing=SEEN)


def hostile_log() -> list[pb.ExplanationEvent]:
    """The events of a job in which everything that a caller or a model names is an attack."""
    log = whole_log()
    for each in log:
        match each.WhichOneof("event"):
            case "prediction":
                each.prediction.target.label = each.prediction.top[0].label = HOSTILE
            case "sufficient_set":
                each.sufficient_set.causal.top_without.label = each.sufficient_set.certificate.model_digest = HOSTILE
            case "concept":
                each.concept.name = HOSTILE
            case "warning":
                each.warning.message = each.warning.reason = HOSTILE
            case "completed":
                done = each.completed
                done.model_version = done.model_digest = done.method = done.truncated_by = HOSTILE
                done.parameters_json, done.truncated = '{"mask_size": "<img onerror=1>\\u001b"}', True
                done.versions["torch"] = HOSTILE
    return log


def test_a_report_has_everything_and_needs_nothing_else() -> None:
    report = explained(whole_log()).report()
    document = Document(report)
    for text in (
        "Why lamp? 75.0%", "What the model saw", "Only this part", "Without it", "insertion", "0.438", "0.58",
        "Set 1: 2 patches", "subset-minimal: 2 sets scored", "25.0% without it: lamp", "x2 eye", "mask_size",
        "The baseline hides too little.", "digest of the model", "d1", "How to reproduce it", JOB,
    ):  # fmt: skip
        assert text in document.text, text
    assert document.tags["svg"] >= 5  # definitions, curves, a set, a graph with two nodes
    assert "script" not in document.tags
    loaded = [value for name, value in document.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert loaded
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in loaded)
    assert "default-src 'none'" in report
    assert "@media print" in report
    used = {value[1:] for name, value in document.attributes if name == "href" and value.startswith("#")}
    assert used <= {value for name, value in document.attributes if name == "id"}


def test_a_report_has_robustness_and_stability_if_they_were_measured() -> None:
    log = whole_log()
    found = next(each.sufficient_set for each in log if each.HasField("sufficient_set"))
    tests = [{"alteration": pb.ALTERATION_KIND_JPEG, "sufficient": True, "minimal": True}]
    found.certificate.robust.CopyFrom(pb.Robustness(alterations=tests, sufficient={"held": 3, "draws": 4}))
    curve = next(each for each in log if each.HasField("curve"))
    curve.stability.runs = 3
    curve.stability.deviation.CopyFrom(to_tensor(np.zeros((7, 7), np.float16)))
    text = Document(explained(log).report()).text
    assert "holds JPEG 95" in text
    assert "sufficient on at least 0% of backgrounds (3 of 4 drawn)" in text
    tests += [{"alteration": pb.ALTERATION_KIND_ROUNDING, "sufficient": True}]
    found.certificate.robust.CopyFrom(pb.Robustness(alterations=tests))
    searched = Document(explained(log).report()).text
    assert "still sufficient, but not minimal: 8-bit" in searched
    assert "drawn)" not in searched
    assert "--robust" not in searched
    assert "rank correlation 0.00 with 2 other seeds" in text
    assert "JPEG" not in Document(explained(whole_log()).report()).text


def test_a_report_tells_how_to_ask_the_same_again() -> None:
    (command,) = [line for line in Document(explained(whole_log()).report()).text.splitlines() if "--model" in line][:1]
    words = shlex.split(command[command.index("sagittal explain") :].partition("from sagittal")[0])
    assert words[:5] == ["sagittal", "explain", "IMAGE", "--model", "lamps@1"]
    assert dict(zip(words[5::2], words[6::2], strict=True)) == {
        "--method": "igos++", "--target": "3", "--seed": "7", "--baseline": "blur", "--set": "mask_size=7",
        "--cache": "bypass",
    }  # fmt: skip


def test_a_report_repeats_what_was_measured_besides() -> None:
    log = whole_log()
    stable = next(each for each in log if each.WhichOneof("event") == "concept")
    stable.stability.MergeFrom(pb.Stability(runs=5, deviation=to_tensor(SALIENCY)))
    for each in log:
        match each.WhichOneof("event"):
            case "prediction":
                each.prediction.preprocessing.input_size = 2
            case "sufficient_set":
                each.sufficient_set.certificate.robust.sufficient.draws = 1
    text = Document(explained(log).report()).text
    assert "--curves pixel --stability 4" in text
    assert "--robust --cache bypass" in text
    assert "metrics=Metrics(protocol='pixel', stability=4, robustness=RobustnessTest())" in text


def test_names_in_a_report_are_text_whatever_they_contain() -> None:
    benign, document = Document(explained(whole_log()).report()), Document(explained(hostile_log()).report())
    assert document.tags["img"] == benign.tags["img"]
    assert not [name for name, _ in document.attributes if name.startswith("on")]
    assert "<img src=x onerror" in document.text
    shown = document.text + "".join(value for _, value in document.attributes)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2028"} & set(shown)
    assert r"\x1b]0;owned\x07\x9b\u202eevil" in shown


@pytest.mark.parametrize("events", [2, 3, 6])
def test_a_job_without_a_result_has_a_report_too(events) -> None:
    found = parse_explanation(
        pb.Explanation(job_id=JOB, state=pb.JOB_STATE_RUNNING, model="lamps", events=whole_log()[:events])
    )
    assert "running" in Document(found.report()).text
    cancelled = replace(found, state="cancelled", error=JobCancelled("the caller left"))
    assert "the caller left" in Document(cancelled.report()).text


def test_a_report_without_the_image_states_so_and_shows_where_the_explanation_lies() -> None:
    found = replace(explained(whole_log()), image=None)
    document = Document(found.report())
    assert "The image is no longer kept" in document.text
    assert document.tags["clippath"] == 2
