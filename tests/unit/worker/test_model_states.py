"""A model comes from one state to another only as the table says."""

import itertools

import pytest

from sagittal.core.models import ModelEntry
from sagittal.worker.hosting import states
from sagittal.worker.hosting.hosted_model import Hosted
from sagittal.worker.hosting.states import SHOWN, TRANSITIONS, ImpossibleTransition, ModelState


def hosted(state: ModelState) -> Hosted:
    entry = ModelEntry(name="m", version="1", source={"kind": "python", "factory": "a:b"})
    return Hosted(entry=entry, state=state)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ModelState, ModelState)))
def test_a_model_takes_the_transitions_of_the_table_and_no_other(before: ModelState, after: ModelState) -> None:
    model = hosted(before)
    if after in TRANSITIONS[before]:
        model.become(after, "why")
        assert (model.state, model.message) == (after, "why")
    else:
        with pytest.raises(ImpossibleTransition, match=f"is {before} and cannot become {after}"):
            model.become(after)
        assert model.state is before


def test_every_state_is_drawn_announced_and_reached_and_has_an_end() -> None:
    reached = {ModelState.WAITING}.union(*TRANSITIONS.values())
    assert set(TRANSITIONS) == set(SHOWN) == reached == set(ModelState)
    for state in ModelState:
        assert state.name in (states.__doc__ or "")
        assert state is ModelState.DRAINING or ModelState.DRAINING in TRANSITIONS[state]


def test_what_failed_waits_again_without_its_message() -> None:
    model = hosted(ModelState.LOADING)
    model.become(ModelState.FAILED, "the file does not exist")
    model.become(ModelState.WAITING)
    assert model.message == ""
