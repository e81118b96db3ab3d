"""The queue's scripts do what the specification says, which keeps the promises. `make model-check` does more."""

import pytest

from queue_model.__main__ import server
from queue_model.bounds import SMALL
from queue_model.clients import Bounds, World
from queue_model.explore import Broken, explore
from queue_model.machine import QueueMachine, run_random
from queue_model.mutations import MUTATIONS, find
from queue_model.replay import cover, replay
from queue_model.scripts import RealQueue
from queue_model.specification import Limits, Queue
from sagittal.queue.scripts import load_script, script_names

#: Small enough for every run of the suite.
BRIEF = (
    "one job and two workers",
    "one job that is cancelled and released",
    "a lost answer",
    "a job that fails or is deleted, and an equal one",
)

#: Schedules that broke a promise, each shortened by the model check, and what was wrong.
MENDED = {
    "a lease that is sent again gave the lease of another worker": "submit t:k -; lease a; tick; tick; sweep; lease b; "
    "again a; settle b 0 completed",
    "a released execution that is cancelled waited for a worker": "submit t:k -; lease a; cancel 0; release a 0; die a",
    "a release that is sent again did not end what is cancelled": "submit t:k -; lease a; cancel 0; release a 0; "
    "again a; end a",
    "a job with a later deadline failed with the one that it joined": "submit t:k 10; tick; lease a; submit t:k 30; "
    "end a; lease a",
    "a job lost its deadline when the one that it shared with left": "submit t:k -; submit t:k 20; lease a; cancel 0; "
    "tick; tick; tick; tick; tick; heartbeat a 0; tick; sweep",
    "a job was dead-lettered after its late worker had released it": "submit t:k -; lease a; tick; tick; sweep; "
    "lease b; tick; tick; sweep; release b 0; end service",
}


@pytest.fixture(scope="module")
def client():
    with server() as client:
        yield client


@pytest.mark.parametrize("title", BRIEF)
def test_every_interleaving_keeps_the_promises_and_the_scripts_agree(client, title) -> None:
    graph = explore(SMALL[title])
    covered = cover(graph, RealQueue(client, Limits()))
    assert covered.transitions >= 80
    assert covered.recoveries


def test_random_interleavings_keep_the_promises(client) -> None:
    run_random(RealQueue(client, Limits()), schedules=5, steps=25, number=1)
    assert QueueMachine.actions > 5  # how many depends on the release of hypothesis


@pytest.mark.parametrize("schedule", MENDED.values(), ids=MENDED)
@pytest.mark.parametrize("twice", [False, True])
def test_a_schedule_that_broke_a_promise_keeps_it(client, schedule, twice) -> None:
    world = World.new(Bounds((), workers="ab", most_leases=2))
    replay(world, RealQueue(client, Limits()), schedule.split("; "), twice=twice)


def test_the_specification_itself_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "_holds", lambda queue, number, token: queue.runs[number].state == "running")
    with pytest.raises(Broken, match="2: "):
        explore(Bounds((("t:k", None),), budget=(("tick", 2), ("append", 3))))


def test_a_fault_in_a_script_is_found(client) -> None:
    graph = explore(SMALL["a lost answer"])
    for title in ("an append that is sent again counts twice", "a lease counts two attempts"):
        [mutation] = [each for each in MUTATIONS if each.title == title]
        assert find(mutation, lambda change: RealQueue(client, Limits(), change=change), [graph]) is not None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.title)
def test_each_fault_that_is_put_in_has_its_place_in_a_script(mutation) -> None:
    assert any(mutation.old in load_script(name).text for name in script_names())
