"""Findings are kept, compared, and decide whether a pipeline goes on."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from sagittal.audit.findings import Audit, Finding, ListedImage, Thresholds, compare
from sagittal.audit.statistics import Effect
from sagittal.cli.app import app
from sagittal.client import InvalidRequest


def effect(mean: float) -> Effect:
    return Effect(mean=mean, low=mean - 0.05, high=mean + 0.05, p=0.001, size=2.0, images=10)


def finding(group: str = "red", mean: float = 0.5, **changes: object) -> Finding:
    listed = ListedImage(key="a.png", presence=0.9, listed=True, box=(24, 24, 32, 32))
    plain = Finding(
        id=f"{group}/place-1", group=group, kinds=("place",), severity="high", place="outside the object",
        confirmed_by=("adding",), images=8, of=24, removed=effect(0.0), added=effect(mean), q=0.01,
        box=(24, 24, 32, 32), fixed=True, listing=(listed,),
    )  # fmt: skip
    return replace(plain, **changes)


def audit(*findings: Finding) -> Audit:
    return Audit(
        model="lamp", model_version="1", model_digest="d", source="images", method="igos++", size=32, images=48,
        groups={"red": 24, "blue": 24}, findings=findings, tested=(), left_out={"grey": "2 images"},
    )  # fmt: skip


def saved(folder: Path, found: Audit) -> Path:
    folder.mkdir()
    found.save(folder)
    return folder


def test_an_audit_is_equal_after_it_was_saved_and_loaded(tmp_path) -> None:
    before = audit(finding(), finding("blue", removed=None))
    assert Audit.load(saved(tmp_path / "a", before)) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 99}', '{"format": 1, "findings": 3}'])
def test_a_file_that_is_no_audit_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "findings.json").write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        Audit.load(tmp_path)
    assert caught.value.field == "audit"


@pytest.mark.parametrize(
    ("after", "state"),
    [
        ((finding(),), "same"),
        ((finding(mean=0.9),), "stronger"),
        ((finding(mean=0.2),), "weaker"),
        ((), "gone"),
        ((finding(box=(0, 0, 8, 8)),), "new"),
        ((finding(kinds=("outside", "place")),), "same"),
    ],
)
def test_a_finding_is_found_again_by_group_kind_and_place(after, state: str) -> None:
    changes = compare(audit(finding()), audit(*after))
    assert changes[0].state == state
    assert changes[0].worse == (state in ("new", "stronger"))


def test_thresholds_come_from_a_file_whose_faults_are_named(tmp_path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("medium = 0.2\nhigh = 0.6\n")
    found = Thresholds.read(path)
    assert [found.severity(low) for low in (0.01, 0.05, 0.3, 0.7)] == ["", "low", "medium", "high"]
    for content, field in (("mediun = 1", "mediun"), ("low = 2", "low"), ("low = 0.5", "medium"), ("=", "thresholds")):
        path.write_text(content)
        with pytest.raises(InvalidRequest) as caught:
            Thresholds.read(path)
        assert caught.value.field == field


def test_the_gate_of_a_comparison_fails_only_for_what_is_worse(tmp_path) -> None:
    old = saved(tmp_path / "old", audit(finding()))
    new = saved(tmp_path / "new", audit(finding(), finding("blue", severity="medium")))
    report = tmp_path / "junit.xml"

    def gate(one: Path, other: Path, severity: str) -> int:
        arguments = [one, other, "--fail-on", severity, "--junit", report, "--out", tmp_path / "changes.html"]
        return CliRunner().invoke(app, ["audit", "compare", *map(str, arguments)]).exit_code

    assert [gate(old, new, "medium"), gate(old, new, "high"), gate(new, old, "low")] == [1, 0, 0]
    assert gate(old, new, "low") == 1
    suite = ElementTree.parse(report).getroot()  # noqa: S314 - our own file
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.get("name") for case in suite.findall("testcase[failure]")] == ["blue"]
    assert "new" in (tmp_path / "changes.html").read_text()


def test_a_comparison_is_printed_as_json(tmp_path) -> None:
    old, new = saved(tmp_path / "old", audit(finding())), saved(tmp_path / "new", audit())
    shown = CliRunner().invoke(app, ["audit", "compare", str(old), str(new), "--json"])
    gone = {"state": "gone", "severity": "high", "finding": "red/place-1"}
    assert json.loads(shown.stdout) == {"findings": [gone], "sufficient_sets": []}
