"""What if only these patches were shown: of an image, and of a job that knows some answers already."""

import pytest
from known_models import LEFT, image

from sagittal.client import Client, MinimalSufficientExplanations, ModelInput, PatchSet, UnknownJob

LEFT_PATCHES = PatchSet(7, (8, 9, 15, 16))
"""Patches that hold what the model looks at, of 8 pixels each."""

ELSEWHERE = PatchSet(7, (40, 41))


def subject() -> ModelInput:
    return ModelInput(image(LEFT).numpy())


def test_regions_of_an_image_are_scored_shown_and_hidden(client: Client):
    shown = client.score_regions([LEFT_PATCHES, ELSEWHERE], image=subject(), model="left", target=1)
    hidden = client.score_regions([LEFT_PATCHES, ELSEWHERE], image=subject(), model="left", target=1, hide=True)
    assert [score.relative_score > 0.9 for score in shown.scores] == [True, False]
    assert [score.relative_score > 0.9 for score in hidden.scores] == [False, True]
    assert shown.full == hidden.full
    assert (shown.full.label, shown.scores[1].top.label, shown.scores[0].cached) == ("left", "nothing", False)


def test_a_job_answers_from_what_it_found(client: Client):
    explanation = client.explain(subject(), model="left", target=1, method=MinimalSufficientExplanations())
    (found,) = explanation.sufficient_sets[:1]
    answer = client.score_regions([ELSEWHERE, found.patches], job_id=explanation.job_id)
    assert [score.cached for score in answer.scores] == [False, True]
    assert answer.scores[1].score == found.score
    anew = client.score_regions([found.patches], image=subject(), model="left", target=1)
    assert anew.scores[0].score == pytest.approx(found.score, abs=1e-6)


def test_a_job_that_nobody_knows_has_no_regions(client: Client):
    with pytest.raises(UnknownJob):
        client.score_regions([ELSEWHERE], job_id="0" * 32)
