"""Sets that survive a file, on models that see whether an image was stored as JPEG, and then score by another table."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator
from sagittal.engine.alterations import Jpeg, PixelScale
from sagittal.explain import MinimalSufficientExplanations, Question
from sagittal.explain.baselines import Candidate
from sagittal.explain.events import CertificateLevel, Checkpoint, Progress, SufficientSet, Truncated
from sagittal.explain.explanation import explanation_steps
from sagittal.explain.measures.curves import Metrics
from sagittal.explain.problem import Problem, prepare
from sagittal.explain.sets.durability import Durability
from sagittal.explain.sets.patches import members
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of

GRID, CELL = 3, 16
SCALE = PixelScale((0.0,) * 3, (1.0,) * 3)
TRACE = (torch.arange(GRID * CELL).view(-1, 1) + torch.arange(GRID * CELL)) % 2 / 255
"""A checkerboard of one level, which no JPEG file keeps: it is on the image and on the baseline."""

Score = Callable[[Tensor], Tensor]


class SeesFiles(nn.Module):
    """Scores the shown patches of an image by one function, and those of an image that was a JPEG file by another."""

    def __init__(self, fresh: Score, stored: Score) -> None:
        super().__init__()
        self.fresh, self.stored = fresh, stored

    def forward(self, inputs: Tensor) -> Tensor:
        shown = nn.functional.adaptive_avg_pool2d(inputs[:, :1], GRID).flatten(1).round()
        traced = (inputs[:, 0, :, 1:] - inputs[:, 0, :, :-1]).abs().flatten(1).median(1).values > 0.5 / 255
        scores = torch.where(traced, self.fresh(shown), self.stored(shown))
        return torch.stack([scores, 1 - scores], -1)


class Black:
    """A baseline that is black but for the trace."""

    kind = "black"

    def candidates(self, image: Tensor, *_):
        yield Candidate(TRACE.expand_as(image))


QUESTION = Question(image=(1 - TRACE).expand(3, -1, -1), target=0, baseline=Black(), pixels=SCALE)


def complete(fresh: Score, stored: Score, steps: Steps, budget: Budget | None = None):
    """Returns the sets as last yielded, all events, and the usage."""
    events, ends = [], []
    task = Task(steps=steps, on_event=events.append, on_end=ends.append, budget=budget or Budget())
    model = SeesFiles(fresh, stored).eval()
    Engine(TorchEvaluator(module=model, device=torch.device("cpu"), output=Output.PROBABILITIES)).run(task)
    assert ends == [None]
    return {event.patches: event for event in events if isinstance(event, SufficientSet)}, events, task.usage


def run(fresh: Score, stored: Score, explainer: MinimalSufficientExplanations, budget: Budget | None = None, **options):
    question = replace(QUESTION, **options)
    return complete(fresh, stored, explanation_steps(question, explainer, Metrics(curves=False)), budget)


def survives(found: SufficientSet) -> dict[str, tuple[bool, bool]]:
    return {each.alteration.value: (each.sufficient, each.minimal) for each in found.certificate.robust.alterations}


HOLDS = {"rounding": (True, True), "jpeg": (True, True)}
ONE = MinimalSufficientExplanations(grid=GRID, max_sets=1)


def test_a_set_that_a_file_breaks_is_replaced_by_one_that_it_leaves(known):
    sets, _, _ = run(known.any_of([0, 1], [1, 2]), known.any_of([1, 2]), ONE)
    assert {patches: survives(found) for patches, found in sets.items()} == {(1, 2): HOLDS}


def test_a_set_that_is_no_longer_minimal_in_a_file_is_replaced_too(known):
    sets, _, _ = run(known.any_of([0, 1], [1, 2]), known.any_of([0], [1, 2]), ONE)
    assert {patches: survives(found) for patches, found in sets.items()} == {(1, 2): HOLDS}


def test_a_set_that_nothing_can_replace_is_returned_with_what_holds(known):
    sets, _, _ = run(known.any_of([0, 1]), known.any_of([0, 1, 2]), ONE)
    assert {patches: survives(found) for patches, found in sets.items()} == {
        (0, 1): {"rounding": (True, True), "jpeg": (False, False)}
    }


def test_a_set_that_is_still_sufficient_in_a_file_is_preferred(known):
    sets, _, _ = run(known.any_of([0, 1], [1, 2]), known.any_of([2], [1, 2, 3]), ONE)
    assert {patches: survives(found) for patches, found in sets.items()} == {
        (1, 2): {"rounding": (True, True), "jpeg": (True, False)}
    }


def test_only_the_method_with_this_addition_looks_at_files(known):
    explainer = MinimalSufficientExplanations(grid=GRID, certify_after="rounding")
    sets, events, _ = run(known.any_of([0, 1], [1, 2]), known.any_of([1, 2]), explainer)
    assert set(sets) == {(0, 1), (1, 2)}
    assert all(each.certificate.robust is None for each in sets.values())
    names = {name for event in events if isinstance(event, Checkpoint) for name in event.state}
    assert not any("altered" in name for name in names)


def tables(seed: int) -> list[Tensor]:
    """Two tables of scores that rise with the number of patches, and differ by noise."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([bits.bit_count() for bits in range(1 << GRID**2)]) / GRID**2
    base = 0.6 * sizes + 0.4 * torch.rand(len(sizes), generator=generator)
    found = [base + 0.05 * torch.rand(len(sizes), generator=generator) for _ in range(2)]
    for table in found:
        table[0], table[-1] = 0.05, 0.9
    return [table.clamp(0.0, 1.0) for table in found]


@pytest.mark.parametrize("seed", range(4))
def test_what_a_certificate_says_of_files_is_true_by_enumeration(known, seed):
    fresh, stored = tables(seed)
    sets, _, _ = run(known.table(fresh.tolist()), known.table(stored.tolist()), MinimalSufficientExplanations(grid=3))
    assert sets
    for patches, found in sets.items():
        bits, required = bits_of(patches), found.certificate.required_score
        below = [bits & ~(1 << patch) for patch in patches]
        said = survives(found)
        for name, table in (("rounding", fresh), ("jpeg", stored)):
            sufficient = bool(table[bits] >= required)
            assert said[name] == (sufficient, sufficient and bool((table[below] < required).all()))
        assert said["rounding"] == (True, True)


def test_a_resumed_search_scores_no_file_again(known):
    scores = known.any_of([0, 1], [1, 2], [4, 5]), known.any_of([1, 2], [4, 5])
    explainer = MinimalSufficientExplanations(grid=GRID)
    sets, events, usage = run(*scores, explainer)
    states = [event.state for event in events if isinstance(event, Checkpoint)]
    state = next(each for each in states[len(states) // 2 :] if "altered-scores.target" in each)
    again, _, resumed = run(*scores, explainer, restored=state)
    assert again == sets
    known_rows = len(state["scores.target"]) + len(state["altered-scores.target"])
    assert resumed.evaluations == usage.evaluations - known_rows


@pytest.mark.parametrize("spared", range(1, 40, 6))
def test_a_budget_may_end_among_the_files(known, spared):
    scores = known.any_of([0, 1], [1, 2]), known.any_of([1, 2])
    _, _, usage = run(*scores, ONE)
    budget = Budget(evaluations=usage.evaluations - usage.metric_evaluations - spared)
    sets, events, _ = run(*scores, ONE, budget)
    assert [event.limit for event in events if isinstance(event, Truncated)] == ["evaluations"]
    assert sets


def test_a_set_whose_files_a_budget_left_out_is_reported_as_sufficient(known):
    scores = known.any_of([0, 1], [7, 8]), known.any_of([0, 1], [7, 8])
    explainer = replace(ONE, max_sets=2)
    sets, _, usage = run(*scores, explainer)
    assert set(sets) == {(0, 1), (7, 8)}
    ends = []
    for spared in range(1, 20):
        budget = Budget(evaluations=usage.evaluations - usage.metric_evaluations - spared)
        sets, events, _ = run(*scores, explainer, budget)
        before = events[: next(place for place, event in enumerate(events) if isinstance(event, Truncated))]
        phase = next(event.phase for event in reversed(before) if isinstance(event, Progress))
        if phase == "files" and any(isinstance(event, SufficientSet) for event in before):
            assert set(sets) == {(0, 1), (7, 8)}
            ends += [(found.certificate.level, found.certificate.robust is None) for found in sets.values()]
    assert {(CertificateLevel.SUFFICIENT, True), (CertificateLevel.MINIMUM_SIZE, False)} == set(ends)


def test_a_replacement_must_be_allowed(known):
    chosen: list[tuple[int, ...]] = []

    def replaced(allowed: bool):
        problem: Problem = yield from prepare(QUESTION)
        memo = MinimalSufficientExplanations(grid=GRID).memo(problem)
        near = Durability(plain=memo, altered=memo.altered(Jpeg(SCALE)), allowed=lambda _: allowed)
        yield from memo.evaluate([0, memo.all])
        chosen.append(members((yield from near.replace(bits_of([0, 1]), 100.0))))

    for allowed in (True, False):
        complete(known.any_of([0, 1], [1, 2]), known.any_of([1, 2]), replaced(allowed))
    assert chosen == [(1, 2), (0, 1)]
