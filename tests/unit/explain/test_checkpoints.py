"""Work that is cut off and goes on from its last checkpoint ends as if nothing had happened."""

from collections.abc import Callable

import pytest
import torch
from known_models import LEFT, RIGHT, LooksAtRegions, image

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.engine.requests import Subject
from sagittal.explain import IGOS, Explainer, IGOSPlusPlus, MeaningfulPerturbation
from sagittal.explain.events import Checkpoint, Event, SaliencyMask, Truncated
from sagittal.explain.problem import Problem

SMALL = {"mask_size": 7, "iterations": 6}


def run(
    explainer: Explainer,
    restored: dict[str, torch.Tensor],
    budget: Budget | None = None,
    watch: Callable[[Event], None] = lambda _event: None,
) -> list[Event]:
    """Returns the events of an explanation of a model that looks at two regions; `watch` sees each as it comes."""
    model = LooksAtRegions(LEFT, RIGHT).eval().requires_grad_(False)
    evaluator = TorchEvaluator(module=model, device=torch.device("cpu"), output=Output.LOGITS)
    seen = image(LEFT, RIGHT)
    problem = Problem(
        subject=Subject(seen, torch.zeros_like(seen), 1),
        unmasked_score=0.99,
        baseline_score=0.01,
        seed=3,
        restored=restored,
    )
    events: list[Event] = []
    ends: list[BaseException | None] = []

    def note(event: Event) -> None:
        watch(event)
        events.append(event)

    task = Task(steps=explainer.explain(problem), on_event=note, on_end=ends.append, budget=budget or Budget())
    Engine(evaluator).run(task)
    assert ends == [None]
    return events


def finals(events: list[Event]) -> dict[int, torch.Tensor]:
    return {event.index: event.saliency for event in events if isinstance(event, SaliencyMask) and event.final}


def checkpoints(events: list[Event]) -> list[Checkpoint]:
    return [event for event in events if isinstance(event, Checkpoint)]


EXPLAINERS = {
    "adam": IGOSPlusPlus(**SMALL),
    "nesterov": IGOSPlusPlus(**SMALL, optimizer="nesterov"),
    "line-search": IGOSPlusPlus(**SMALL, optimizer="line-search"),
    "starts": IGOSPlusPlus(mask_size=7, iterations=3, starts=3),
    "fine": IGOSPlusPlus(mask_size=56, iterations=4),
    "one-mask": IGOS(**SMALL, levels=0),
    "plain-gradient": MeaningfulPerturbation(**SMALL),
}


@pytest.mark.parametrize("explainer", EXPLAINERS.values(), ids=EXPLAINERS)
def test_going_on_from_any_step_gives_the_same_result(explainer: Explainer) -> None:
    undisturbed = run(explainer, {})
    found = finals(undisturbed)
    steps = checkpoints(undisturbed)
    assert len(steps) >= 4
    for left, checkpoint in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        resumed = run(explainer, dict(checkpoint.state))
        assert finals(resumed).keys() == found.keys()
        for index, mask in finals(resumed).items():
            torch.testing.assert_close(mask, found[index], atol=1e-5, rtol=0)
        assert len(checkpoints(resumed)) == left


def test_a_checkpoint_of_a_resumed_run_is_that_of_an_undisturbed_one() -> None:
    explainer = IGOSPlusPlus(**SMALL, starts=2)
    steps = checkpoints(run(explainer, {}))
    resumed = checkpoints(run(explainer, dict(steps[7].state)))
    assert resumed[-1].state.keys() == steps[-1].state.keys()
    for name, tensor in resumed[-1].state.items():
        torch.testing.assert_close(tensor, steps[-1].state[name], atol=1e-5, rtol=1e-5)


def test_a_checkpoint_stays_as_it_was_while_the_run_goes_on() -> None:
    copies: list[dict[str, torch.Tensor]] = []

    def copy(event: Event) -> None:
        if isinstance(event, Checkpoint):
            copies.append({name: tensor.clone() for name, tensor in event.state.items()})

    kept = checkpoints(run(IGOSPlusPlus(**SMALL, optimizer="nesterov"), {}, watch=copy))
    for checkpoint, copied in zip(kept, copies, strict=True):
        assert all(torch.equal(tensor, copied[name]) for name, tensor in checkpoint.state.items())


def test_a_budget_that_is_spent_after_the_break_still_gives_the_best_so_far() -> None:
    explainer = IGOSPlusPlus(**SMALL)
    (first, *_) = checkpoints(run(explainer, {}))
    events = run(explainer, dict(first.state), Budget(evaluations=0))
    assert [event.limit for event in events if isinstance(event, Truncated)] == ["evaluations"]
    assert finals(events).keys() == {0}
