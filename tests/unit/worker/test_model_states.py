"""A model comes from one state to another only as the table says, and each situation asks for one action."""

import itertools
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from sagittal.core.models import ModelEntry
from sagittal.v1 import model_pb2
from sagittal.worker.hosting import model as life
from sagittal.worker.hosting.model import (
    DRAINING,
    FAILED,
    LOADING,
    QUARANTINED,
    READY,
    REHEARSING,
    SHOWN,
    TRANSITIONS,
    WAITING,
    Action,
    Desired,
    Goal,
    HostedModel,
    ImpossibleTransition,
    InMemory,
    ModelState,
)

KNOWN = model_pb2.Model(digest="0")
NOTHING, REHEARSE, LOAD, PUBLISH, UNLOAD, QUARANTINE, RELEASE = Action
AS_NEEDED, LOADED, UNLOADED = Goal


def desired(*, load: str = "preload", **fields: object) -> Desired:
    source = {"kind": "python", "factory": "a:b"}
    return Desired(entry=ModelEntry(name="m", version="1", source=source, load=load), **fields)


def hosted(state: ModelState = WAITING, **fields: object) -> HostedModel:
    return HostedModel(desired=desired(), state=state, **fields)


def in_memory(*, jobs: int = 0) -> InMemory:
    return InMemory(SimpleNamespace(), SimpleNamespace(running=jobs, batch_size=7))


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
        assert state.name in (life.__doc__ or "")
        assert state is ModelState.DRAINING or ModelState.DRAINING in TRANSITIONS[state]


def test_what_failed_waits_again_without_its_message() -> None:
    model = hosted(ModelState.LOADING)
    model.become(ModelState.FAILED, "the file does not exist")
    model.become(ModelState.WAITING)
    assert model.message == ""


@pytest.mark.parametrize(
    ("state", "fields", "history", "action"),
    [
        (WAITING, {"goal": LOADED, "described": KNOWN}, {}, LOAD),
        (WAITING, {"goal": LOADED}, {"rehearse": True}, REHEARSE),
        (WAITING, {"goal": LOADED}, {"rehearse": True, "deaths": 2}, REHEARSE),
        (WAITING, {"goal": LOADED}, {"rehearse": True, "deaths": 3}, QUARANTINE),
        (WAITING, {"goal": AS_NEEDED}, {}, LOAD),  # nobody knows yet what it can do
        (WAITING, {"goal": UNLOADED}, {}, LOAD),
        (WAITING, {"goal": AS_NEEDED, "described": KNOWN}, {}, NOTHING),
        (WAITING, {"goal": UNLOADED, "described": KNOWN}, {}, NOTHING),
        (WAITING, {"goal": LOADED, "retry_at": float("inf")}, {}, NOTHING),
        (REHEARSING, {"goal": LOADED}, {"rehearse": True}, NOTHING),
        (LOADING, {"goal": LOADED}, {}, NOTHING),
        (READY, {"goal": LOADED, "memory": in_memory()}, {}, PUBLISH),
        (READY, {"goal": LOADED, "memory": in_memory(), "published": True}, {}, NOTHING),
        (READY, {"goal": AS_NEEDED, "memory": in_memory(), "published": True}, {}, NOTHING),
        (READY, {"goal": UNLOADED, "memory": in_memory(), "published": True}, {}, UNLOAD),
        (READY, {"goal": UNLOADED, "memory": in_memory(jobs=1), "published": True}, {}, NOTHING),
        (READY, {"goal": UNLOADED, "memory": in_memory(), "published": True, "pins": 1}, {}, NOTHING),
        (DRAINING, {"memory": in_memory()}, {}, RELEASE),
        (DRAINING, {"memory": in_memory(jobs=1)}, {}, NOTHING),
        (DRAINING, {"goal": LOADED}, {}, NOTHING),
        (FAILED, {"goal": LOADED}, {}, NOTHING),
        (QUARANTINED, {"goal": LOADED}, {"deaths": 3}, NOTHING),
    ],
)
def test_each_situation_asks_for_one_action(state, fields, history, action) -> None:
    history = {"deaths": 0, "attempts": 3, "rehearse": False, **history}
    assert hosted(state, **fields).next_action(**history) is action


@pytest.mark.parametrize(
    ("load", "wish", "goal"),
    [
        ("preload", "", LOADED),
        ("on-demand", "", AS_NEEDED),
        ("on-demand", "load", LOADED),
        ("preload", "unload", UNLOADED),
    ],
)
def test_the_last_wish_is_the_goal_or_else_what_was_registered(load, wish, goal) -> None:
    assert HostedModel.of(desired(load=load, wish=wish)).goal is goal


@pytest.mark.parametrize("state", [FAILED, QUARANTINED])
def test_load_model_leads_out_of_failure_and_the_same_wish_does_not_twice(state) -> None:
    model = hosted(state, retry_at=float("inf"))
    model.follow(desired(wish="load", turn=1, failed_everywhere=True))
    assert (model.state, model.goal, model.hopeless, model.retry_at) == (WAITING, LOADED, False, 0.0)
    model.become(LOADING)
    model.become(FAILED, "again")
    model.follow(desired(wish="load", turn=1, failed_everywhere=True))
    assert (model.state, model.hopeless) == (FAILED, True)


def test_what_made_room_is_not_loaded_again_without_a_job() -> None:
    model = hosted(READY, goal=LOADED, memory=in_memory(), described=KNOWN, published=True)
    model.become(WAITING)
    model.release()
    assert model.next_action(deaths=0, attempts=3, rehearse=False) is NOTHING
    assert (model.on_demand, model.batch_size, model.loaded, model.engine) == (True, 7, None, None)
    model.want(nullcontext)
    assert model.next_action(deaths=0, attempts=3, rehearse=False) is LOAD


def test_a_model_that_was_loaded_for_a_job_is_kept_for_it_for_a_while() -> None:
    model = hosted(READY, memory=in_memory())
    assert model.spare
    model.want(nullcontext)
    assert model.idle
    assert not model.spare
    model.demand = life.Demand(until=time.monotonic() - 1)
    assert model.spare


def test_a_registry_that_lost_what_was_found_is_told_again() -> None:
    model = hosted(READY, memory=in_memory(), published=True)
    model.follow(desired(found=KNOWN))
    assert model.published
    model.follow(desired(found=None))
    assert model.next_action(deaths=0, attempts=3, rehearse=False) is PUBLISH
