"""The statistics of sufficient sets are those that were counted by hand, and two audits are compared by them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from sagittal.audit.findings import Audit
from sagittal.audit.report import audit_html, comparison_html
from sagittal.audit.sufficiency import AREAS, SetCounts, SetStatistics, Sufficiency, count_sets
from sagittal.cli.app import app
from sagittal.client import PatchSet


def sets(*patches: tuple[int, ...], grid: int = 7) -> list[SimpleNamespace]:
    return [SimpleNamespace(patches=PatchSet(grid, each), score=0.9) for each in patches]


#: Images with their sets on 7x7 patches: 5, 10, 15 and 20 % of the area are 2.45, 4.9, 7.35 and 9.8 patches.
IMAGES = {
    "three sets": sets((0, 1, 2), (2, 3, 4), (3, 4, 5)),
    "one set": sets((0, 1)),
    "large sets": sets(tuple(range(10)), tuple(range(9, 19))),
    "no set": sets(),
}

#: Counted by hand. The first image: {0, 1, 2} and {3, 4, 5} share nothing, {2, 3, 4} shares one patch with the first
#: and two with the last.
COUNTS = {
    "three sets": SetCounts(3 / 49, (2, 2, 3)),
    "one set": SetCounts(2 / 49, (1, 1, 1)),
    "large sets": SetCounts(10 / 49, (1, 2, 2)),
    "no set": SetCounts(float("inf"), (0, 0, 0)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_sets_of_an_image_are_counted_as_by_hand(name: str) -> None:
    assert count_sets(IMAGES[name]) == COUNTS[name]


def means(estimates) -> list[float]:
    return [each.mean for each in estimates]


def test_the_statistics_of_a_data_set_are_those_counted_by_hand() -> None:
    found = SetStatistics.of(list(COUNTS.values()))
    assert found.images == 4
    # within 5 %: one set; within 10 %: three sets too; within 30 %: large sets too, whose area is 20.4 %
    assert list(zip(AREAS, means(found.locality), strict=True)) == [
        (0.05, 0.25), (0.1, 0.5), (0.15, 0.5), (0.2, 0.5), (0.3, 0.75), (0.5, 0.75), (1.0, 0.75),
    ]  # fmt: skip
    assert means(found.diverse) == [(2 + 1 + 1) / 4, (2 + 1 + 2) / 4, (3 + 1 + 2) / 4]
    assert means(found.several) == [0.25, 0.5, 0.5]
    assert all(each.low <= each.mean <= each.high for each in (*found.locality, *found.diverse, *found.several))


def test_a_set_of_exactly_an_area_is_within_it() -> None:
    found = SetStatistics.of([count_sets(sets(tuple(range(20)), grid=10)), count_sets(sets((0,), grid=1))])
    assert dict(zip(AREAS, means(found.locality), strict=True))[0.2] == 0.5
    assert found.locality[-1].mean == 1


def test_groups_are_counted_alone_and_together() -> None:
    groups = {"red": [COUNTS["three sets"]] * 4, "blue": [COUNTS["no set"]] * 4}
    found = Sufficiency.of(groups, {})
    assert [(group, each.images, each.diverse[0].mean) for group, each in found.rows] == [
        (None, 8, 1), ("red", 4, 2), ("blue", 4, 0),
    ]  # fmt: skip


def audit(sufficient: Sufficiency | None, method: str = "minimal-sufficient-explanations") -> Audit:
    return Audit(
        model="lamp", model_version="1", model_digest="d", source="images", method=method, size=32, images=16,
        groups={"red": 8, "blue": 8}, findings=(), tested=(), sufficient_sets=sufficient,
    )  # fmt: skip


def sufficiency(red: str, blue: str, **parameters: object) -> Sufficiency:
    found = Sufficiency.of({"red": [COUNTS[red]] * 8, "blue": [COUNTS[blue]] * 8}, {"max_overlap": 1, **parameters})
    assert found is not None
    return found


BEFORE = audit(sufficiency("three sets", "one set"))
AFTER = audit(sufficiency("three sets", "large sets"))
HEATMAP = audit(None, "igos++")


def test_an_audit_with_statistics_is_equal_after_it_was_saved_and_loaded(tmp_path) -> None:
    for each in (BEFORE, HEATMAP):
        each.save(tmp_path)
        assert Audit.load(tmp_path) == each


def test_the_report_states_the_statistics_of_each_group_and_of_all_images() -> None:
    page = audit_html(BEFORE, (), None)
    shown = page[page.index("<h2>Sufficient sets") :]
    shown = shown[: shown.index("</section>")]
    assert [shown.count(name) for name in ("all images, 16<", "red, 8<", "blue, 8<")] == [2, 2, 2]
    assert "<svg" in shown
    assert "max_overlap 1" in shown
    # all images at an overlap of 1: 8 of 16 have two sets, the others one
    assert "1.50 (1.25 to 1.75)" in shown
    assert "50% (25 to 75)" in shown


def test_the_report_of_a_heatmap_method_says_why_it_has_no_statistics() -> None:
    page = audit_html(HEATMAP, (), None)
    assert "igos++ gives no sufficient sets" in page
    assert "minimal-sufficient-explanations or structured-attention-graph" in page
    assert Sufficiency.of({"red": [SetCounts()] * 8}, {}) is None


def compared(tmp_path, old: Audit, new: Audit, *options: str):
    for name, each in (("old", old), ("new", new)):
        (tmp_path / name).mkdir(exist_ok=True)
        each.save(tmp_path / name)
    return CliRunner().invoke(app, ["audit", "compare", str(tmp_path / "old"), str(tmp_path / "new"), *options])


def test_a_comparison_states_each_statistic_before_and_after(tmp_path) -> None:
    shown = compared(tmp_path, BEFORE, AFTER)
    lines = {line.split(": ")[0]: line for line in shown.stdout.splitlines() if line.startswith("sufficient sets")}
    assert list(lines) == [f"sufficient sets, {name}" for name in ("all images", "red", "blue")]
    assert "changed" not in lines["sufficient sets, red"]
    blue = lines["sufficient sets, blue"]
    assert "a set within 20% of the area 1.00 (1.00 to 1.00) before, 0.00 (0.00 to 0.00) after, changed" in blue
    assert "; sets at overlap 1 1.00 (1.00 to 1.00) before, 2.00 (2.00 to 2.00) after, changed" in blue
    rows = json.loads(compared(tmp_path, BEFORE, AFTER, "--json").stdout)["sufficient_sets"]
    assert len(rows) == 3 * (len(AREAS) + 3 + 3)
    changed = [(each["statistic"], each["at"]) for each in rows if each["group"] == "blue" and each["changed"]]
    assert changed == [
        ("locality", 0.05), ("locality", 0.1), ("locality", 0.15), ("locality", 0.2),
        ("diverse", 1), ("diverse", 2), ("several", 1), ("several", 2),
    ]  # fmt: skip
    assert "a set within 20% of the area" in comparison_html(BEFORE, AFTER, ())


def test_a_comparison_says_if_the_sets_were_searched_differently_or_not_at_all(tmp_path) -> None:
    other = replace(BEFORE, sufficient_sets=sufficiency("three sets", "one set", max_overlap=2, grid=8))
    shown = compared(tmp_path, BEFORE, other)
    assert "searched differently: grid None before and 8 after, max_overlap 1 before and 2 after" in shown.stderr
    assert "searched differently" in comparison_html(BEFORE, other, ())
    missing = compared(tmp_path, BEFORE, HEATMAP)
    assert "igos++ gives no sufficient sets" in missing.stderr
    assert "sufficient sets," not in missing.stdout
    assert "igos++ gives no sufficient sets" in comparison_html(HEATMAP, AFTER, ())
