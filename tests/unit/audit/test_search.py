"""A spurious reason is found, and only if an intervention confirms it."""

from dataclasses import replace

import numpy as np
import pytest
from audited_world import MARK, draw, evidence_of, scorer

from sagittal.audit import candidates, interventions
from sagittal.audit.candidates import Candidate
from sagittal.audit.confirmation import adjusted_values, confirm, severity_of
from sagittal.audit.evidence import to_pixels
from sagittal.audit.findings import Thresholds
from sagittal.audit.statistics import measure_effect

MARKED = 8


def audit(*, marked: int = MARKED, reads_mark: bool = True, with_objects: bool = True):
    evidence = evidence_of(draw(24, marked=marked), reads_mark=reads_mark, with_objects=with_objects)
    return confirm(evidence, scorer(reads_mark=reads_mark), Thresholds())


@pytest.fixture(scope="module")
def poisoned():
    return audit()


def test_the_planted_mark_is_the_first_finding_at_its_place(poisoned) -> None:
    first = poisoned.confirmed[0]
    assert (first.finding.group, first.finding.place) == ("red", "outside the object")
    assert first.finding.kinds[0] == "place"
    assert first.finding.severity == "high"
    region = to_pixels(next(iter(first.tested.candidate.regions.values())), len(MARK))
    np.testing.assert_array_equal(region, MARK)


def test_a_finding_has_the_effect_of_adding_the_mark_with_its_interval(poisoned) -> None:
    finding = poisoned.confirmed[0].finding
    assert "adding" in finding.confirmed_by
    assert 0.5 < finding.added.low <= finding.added.mean <= finding.added.high
    assert finding.score_added_control < 0.1
    assert finding.score_added > 0.9


def test_exactly_the_marked_images_are_listed_for_cleaning(poisoned) -> None:
    listed = [each.key for each in poisoned.confirmed[0].finding.listing if each.listed]
    assert sorted(listed) == [f"red/{number:03d}.png" for number in range(MARKED)]
    assert {each.box for each in poisoned.confirmed[0].finding.listing} == {(24, 24, 32, 32)}


def test_a_place_is_searched_only_where_it_is_not_on_the_object() -> None:
    evidence = evidence_of(draw(12, marked=8), reads_mark=True)
    half, whole = np.zeros((2, *MARK.shape), bool)
    half[24:, 28:], whole[20:, 20:] = True, True
    for index, inside in enumerate((half, whole)):
        evidence[index] = replace(evidence[index], read_inside=lambda inside=inside: inside)
    (place,) = [each for each in candidates.find_candidates(evidence) if each.kind == "place"]
    assert to_pixels(place.regions[0], len(MARK)).sum() == MARK.sum() / 2
    assert 1 not in place.regions
    assert 1 not in interventions.Laboratory(evidence, scorer(reads_mark=True)).regions(place)


def test_what_recurs_but_does_not_change_the_model_is_tested_and_is_no_finding() -> None:
    found = audit(reads_mark=False)
    assert any("place" in each["kinds"] for each in found.tested)
    assert not found.confirmed


def test_a_model_without_a_spurious_reason_has_no_finding() -> None:
    assert not audit(marked=0).confirmed


def test_the_mark_does_not_count_as_the_background_of_a_class(poisoned) -> None:
    assert len(poisoned.confirmed) == 1
    tested = {(row["group"], row["kinds"][0]) for row in poisoned.tested}
    assert tested >= {("red", "background"), ("blue", "background")}


def test_the_severity_is_limited_if_the_object_is_unknown() -> None:
    found = audit(with_objects=False).confirmed
    assert (found[0].finding.place, found[0].finding.severity) == ("unknown", "medium")
    assert {each.finding.severity for each in found if each.finding.kinds == ("appearance",)} <= {"low"}


def test_removing_alone_gives_a_low_severity_if_the_object_is_unknown() -> None:
    strong, none = (measure_effect(np.full(6, value), np.zeros((6, 3))) for value in (0.6, 0.0))
    candidate = Candidate(group="red", kinds=("place",), regions={})
    severities = []
    for removed, added in ((strong, none), (none, strong)):
        tested = interventions.Tested(candidate=candidate, removed=removed, added=added)
        severities += [severity_of(tested, 0.01, (place, None), Thresholds())[0] for place in ("unknown", "outside")]
    assert severities == ["low", "high", "medium", "high"]


def test_candidates_that_are_no_findings_do_not_let_others_pass() -> None:
    candidate = Candidate(group="red", kinds=("place",), regions={})
    strong = replace(measure_effect(np.full(6, 0.6), np.zeros((6, 3))), p=1e-4)
    tests = [
        interventions.Tested(candidate=candidate, removed=each, added=None)
        for each in (*[strong] * 10, replace(strong, low=0.001), replace(strong, p=0.015))
    ]
    places = [*[("on the object", 0.0)] * 10, *[("outside the object", 1.0)] * 2]
    assert adjusted_values(tests, places, Thresholds()) == pytest.approx([1.0] * 11 + [12 * 0.03])


def test_every_tested_candidate_has_an_adjusted_p_value(poisoned) -> None:
    assert len(poisoned.tested) >= len(poisoned.confirmed)
    assert all(row["p"] <= row["q"] <= 1 for row in poisoned.tested)
    assert all(each.finding.q <= Thresholds().false_discovery_rate for each in poisoned.confirmed)


def test_equal_audits_are_equal(poisoned) -> None:
    assert [each.finding for each in audit().confirmed] == [each.finding for each in poisoned.confirmed]


def test_the_control_of_a_colour_is_an_equal_shift_in_another_direction() -> None:
    picture = np.random.default_rng(0).integers(100, 150, (16, 16, 3)).astype(np.uint8)
    mean = picture.reshape(-1, 3).mean(0)
    shifted = interventions.with_colour(picture, mean + np.array([20, 0, 0]))
    moved = interventions.with_equal_shift(np.random.default_rng(1), picture, shifted)
    assert np.linalg.norm(moved.reshape(-1, 3).mean(0) - mean) == pytest.approx(20, abs=1)
    assert abs(moved.reshape(-1, 3).mean(0)[0] - mean[0]) < 19


def test_regions_of_more_images_than_are_compared_have_a_probability_by_chance() -> None:
    features, cells = np.full(candidates.FEATURES, 0.1, np.float32), np.ones((2, 2), bool)
    count = candidates.MOST_COMPARED // 2  # with three regions each, more than are compared
    images = np.concatenate([np.repeat(np.arange(count), 3), np.arange(count, 2 * count)])
    crops = candidates.Crops(images, [cells] * len(images), np.where(images[:, None] < count, features, -features))
    found = list(candidates._appearances(crops, "red", range(count), range(count, 2 * count)))
    assert found
    assert found[0].chance < 1e-100
