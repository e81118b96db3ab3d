from typing import Any

import pytest

from sagittal.core.errors import InvalidRequest
from sagittal.core.patch_sets import Known, check_patch_shape, check_sets, known_sets, region_score, unmasked_score
from sagittal.v1 import explanation_pb2 as api


def patches(*indices: int, grid: int = 3) -> api.PatchSet:
    return api.PatchSet(grid=grid, patches=indices)


def score(index: int, value: float) -> api.ClassScore:
    return api.ClassScore(index=index, score=value)


def event(**fields: Any) -> api.ExplanationEvent:
    return api.ExplanationEvent(**fields)


def found(*indices: int, digest: str = "d", **fields: Any) -> api.ExplanationEvent:
    certificate = api.Certificate(model_digest=digest)
    return event(sufficient_set=api.SufficientSet(patches=patches(*indices), certificate=certificate, **fields))


@pytest.mark.parametrize(
    ("sets", "field"),
    [
        ([], "sets"),
        ([patches(0)] * 1001, "sets"),
        ([patches(0, grid=2)], "sets[0].grid"),
        ([patches(0, grid=15)], "sets[0].grid"),
        ([patches(0, grid=7), patches(0, grid=8)], "sets[1].grid"),
        ([patches(1), patches(0, 9)], "sets[1].patches[1]"),
        ([patches(1), patches(4, 2, 4)], "sets[1].patches[2]"),
    ],
)
def test_every_fault_of_a_set_names_its_field(sets: list[api.PatchSet], field: str) -> None:
    with pytest.raises(InvalidRequest) as fault:
        check_sets(sets)
    assert fault.value.field == field


def test_sets_on_one_grid_are_admitted_the_empty_one_included() -> None:
    assert check_sets([patches(grid=14), patches(195, 0, grid=14)] * 500) == 14


def test_a_grid_has_no_more_patches_a_side_than_the_image_has_pixels() -> None:
    assert check_sets([patches(grid=8)], input_size=8) == 8
    with pytest.raises(InvalidRequest, match="3 to 8"):
        check_sets([patches(grid=9)], input_size=8)


def test_an_unknown_shape_is_refused() -> None:
    check_patch_shape(2, "shape")
    with pytest.raises(InvalidRequest) as fault:
        check_patch_shape(3, "shape")
    assert fault.value.field == "shape"


def test_the_events_of_a_job_say_what_was_scored_of_a_set_and_of_what_it_leaves() -> None:
    causal = api.CausalTriple(sufficiency=0.8, without=0.1, top_without=score(2, 0.6))
    node = api.GraphNode(patches=patches(5), score=0.3, top=score(4, 0.5))
    events = [found(0, 1, score=0.8, top=score(7, 0.8), causal=causal), event(graph_node=node)]
    assert known_sets(events, 3, "d") == {
        0b000000011: Known(events[0].sufficient_set.score, score(7, 0.8)),
        0b111111100: Known(causal.without, score(2, 0.6)),
        0b000100000: Known(node.score, score(4, 0.5)),
    }


def test_nothing_is_known_on_another_grid_of_another_model_or_without_a_top_class() -> None:
    whole = found(0, score=0.8, top=score(7, 0.8))
    assert not known_sets([whole], 4, "d")
    assert not known_sets([whole, found(1, digest="another")], 3, "d")
    assert not known_sets([found(0, score=0.8)], 3, "d")


def test_the_unmasked_score_is_that_of_the_newest_prediction() -> None:
    first, second = (event(prediction=api.Prediction(target=score(1, value))) for value in (0.5, 0.6))
    assert unmasked_score([first, event(progress=api.Progress()), second]) == second.prediction.target
    assert unmasked_score([]) is None


def test_a_score_is_relative_to_the_full_one() -> None:
    answer = region_score(Known(0.25, score(3, 0.5)), score(1, 0.5), cached=True)
    assert (answer.score, answer.relative_score, answer.top, answer.cached) == (0.25, 0.5, score(3, 0.5), True)
    assert region_score(Known(0.25, score(3, 0.5)), score(1, 0.0), cached=False).relative_score == 0.0
