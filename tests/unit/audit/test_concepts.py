"""Concepts that fire outside the object are candidates, and findings only if an intervention confirms them."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from audited_world import GRID, MARK, draw, evidence_of, scorer

from sagittal.audit.candidates import find_candidates
from sagittal.audit.confirmation import confirm
from sagittal.audit.evidence import Evidence, FiredConcept, shrink_mask, to_pixels
from sagittal.audit.findings import Thresholds, describe
from sagittal.audit.runs import concepts_of, saliency_of

STAMP, SQUARE = "x1 stamp", "x2"


def explained_by_concepts(*, reads_mark: bool = True, with_objects: bool = True) -> Sequence[Evidence]:
    """Returns images on which a concept fires on the square, and on marked ones another on the mark.

    The heatmap as a whole shows the square alone, so that nothing but the concept finds the mark.
    """
    images = draw(24, marked=8)
    evidence = evidence_of(images, reads_mark=reads_mark, with_objects=with_objects)
    found = []
    for image, each in zip(images, evidence, strict=True):
        square = shrink_mask(image.square, GRID)
        fired = (FiredConcept(SQUARE, square), *([FiredConcept(STAMP, shrink_mask(MARK, GRID))] * image.marked))
        found.append(replace(each, saliency=square, concepts=fired))
    return found


def named(candidates) -> list:
    return [each for each in candidates if each.concept]


def test_the_concept_that_reads_the_mark_is_a_finding_with_its_name_and_place() -> None:
    found = confirm(explained_by_concepts(), scorer(reads_mark=True), Thresholds()).confirmed
    first = found[0].finding
    assert (first.group, first.kinds, first.concept) == ("red", ("concept",), STAMP)
    assert (first.images, first.place, first.severity) == (8, "outside the object", "high")
    assert "adding" in first.confirmed_by
    assert f"concept ({STAMP}) in 8 of 24 images" in describe(first)
    np.testing.assert_array_equal(to_pixels(found[0].regions[0], len(MARK)), MARK)


def test_a_concept_that_does_not_change_the_model_there_is_tested_and_is_no_finding() -> None:
    found = confirm(explained_by_concepts(reads_mark=False), scorer(reads_mark=False), Thresholds())
    assert any("concept" in each["kinds"] for each in found.tested)
    assert not found.confirmed


def test_a_concept_on_the_object_is_no_candidate_and_none_is_if_objects_are_unknown() -> None:
    assert [each.concept for each in named(find_candidates(explained_by_concepts()))] == [STAMP]
    assert not named(find_candidates(explained_by_concepts(with_objects=False)))


def contribution(index: int, name: str, value: float, heatmap: np.ndarray | None) -> SimpleNamespace:
    return SimpleNamespace(index=index, name=name, contribution=value, heatmap=heatmap)


def test_the_saliency_of_concepts_is_the_weighted_mean_of_those_that_raise_the_class() -> None:
    left, right, both = np.float32([[1, 0], [1, 0]]), np.float32([[0, 1], [0, 1]]), np.ones((2, 2), np.float32)
    explanation = SimpleNamespace(
        mask=None, sufficient_sets=(),
        concepts=(
            contribution(0, "stamp", 3.0, left), contribution(1, "", 1.0, right),
            contribution(2, "beak", -5.0, both), contribution(3, "wing", 2.0, None),
        ),
    )  # fmt: skip
    assert saliency_of(explanation) == pytest.approx(np.float32([[0.75, 0.25], [0.75, 0.25]]))
    assert [each.name for each in concepts_of(explanation)] == ["x1 stamp", "x2"]
    nothing = SimpleNamespace(mask=None, sufficient_sets=(), concepts=())
    assert not saliency_of(nothing).any()
