"""What an engine remembers: what the model would return, computed in the same way, for whoever asks again."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_models import LEFT, RIGHT, LooksAtRegions, image

from sagittal.engine import Budget, Engine, Task, TorchEvaluator
from sagittal.engine.memo import MOST_CELLS, ScoreMemo
from sagittal.engine.requests import Evaluate, Scores, Subject, Upsampling
from sagittal.explain import (
    Metrics,
    MinimalSufficientExplanations,
    Question,
    StructuredAttentionGraph,
    explanation_steps,
    score_regions,
)
from sagittal.explain.problem import Problem

UNIT = 4
PICTURE, BASELINE = torch.ones(3, 4, 4), torch.zeros(3, 4, 4)


@dataclass
class Fussy:
    """An evaluator like kernels are: it rounds otherwise in batches that are no whole units, by all that is in them."""

    supports_gradients: bool = True
    rows: int = 0
    sizes: list[int] = field(default_factory=list)

    def evaluate(self, parts):
        rows = sum(part.rows for part in parts)
        self.rows += rows
        self.sizes.append(rows)
        return [self._scores(part, rows) for part in parts]

    def _scores(self, part, rows):
        masks, subject = part.request.masks[part.start : part.stop], part.request.subject
        shown = (masks * subject.image.mean() + (1 - masks) * subject.baseline.mean()).flatten(1).mean(1)
        if rows % UNIT:
            shown = shown + 1e-3 * rows + 1e-4 * shown.sum()
        probabilities = torch.stack([shown, 1 - shown, shown / 2], 1)
        target = probabilities[:, subject.target]
        top = probabilities.max(-1)
        every = probabilities if part.request.probabilities else None
        return Scores(
            target, top.indices, top.values, torch.zeros_like(masks) if part.request.gradient else None, every
        )

    def inspect(self, request):
        raise NotImplementedError


def asked(masks, **options):
    subject = Subject(options.pop("image", PICTURE), options.pop("baseline", BASELINE), options.pop("target", 0))
    return Evaluate(subject=subject, masks=masks, **options)


def masks_of(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, 2, 2) / 16


def answers(engine, requests, **options):
    """Returns the answers that a task gets to its requests, one after the other, and the task."""
    got = []

    def steps():
        for request in requests:
            got.append((yield request))  # noqa: PERF401 - a comprehension cannot yield

    task = Task(steps=steps(), **options)
    engine.run(task)
    return got, task


def remembering(most_bytes=2**20):
    return Engine(Fussy(), batch_size=8, unit=UNIT, memo=ScoreMemo(most_bytes))


def same(one, other):
    pairs = [(one.target, other.target), (one.top_class, other.top_class), (one.top_score, other.top_score)]
    return all(torch.equal(*pair) for pair in pairs) and (one.probabilities is None) == (other.probabilities is None)


Sets = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=14), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(Sets, min_size=1, max_size=4), room=st.sampled_from([0, 2_000, 2**20]))
def test_whatever_was_asked_before_answers_are_the_same_to_the_last_bit(jobs, room):
    engine = remembering(room)
    for job in jobs:
        requests = [asked(masks_of(*values), probabilities=len(values) % 2 == 0) for values in job]
        plain, counted = answers(Engine(Fussy(), batch_size=8, unit=UNIT), requests)
        got, task = answers(engine, requests)
        assert all(map(same, got, plain))
        assert task.usage.evaluations == counted.usage.evaluations
        assert engine.memo.bytes <= room


def test_who_asks_again_costs_nothing_and_is_told_so():
    engine, request = remembering(), asked(masks_of(1, 2, 3, 4, 5, 6), metric=True)
    answers(engine, [request])
    evaluated = engine.evaluator.rows
    _, task = answers(engine, [request])
    assert engine.evaluator.rows == evaluated
    assert (task.usage.evaluations, task.usage.metric_evaluations, task.usage.remembered) == (6, 6, 6)
    assert task.served == 0


def test_another_target_is_answered_from_the_same_evaluation():
    engine = remembering()
    answers(engine, [asked(masks_of(1, 2, 3, 4))])
    (got,), task = answers(engine, [asked(masks_of(1, 2, 3, 4), target=1)])
    assert task.usage.remembered == 4
    assert torch.equal(got.target, 1 - masks_of(1, 2, 3, 4)[:, 0, 0])


def test_equal_pictures_are_one_whoever_holds_them():
    engine = remembering()
    answers(engine, [asked(masks_of(1, 2, 3, 4))])
    _, task = answers(engine, [asked(masks_of(4, 3, 2, 1), image=PICTURE.clone(), baseline=BASELINE.clone())])
    assert task.usage.remembered == 4


OTHERS = [
    {"image": PICTURE * 2},
    {"baseline": BASELINE + 0.5},
    {"upsampling": Upsampling.BOX},
    {"gradient": True},
    {"noise": 0.1},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_what_differs_in_anything_is_evaluated(other):
    engine = remembering()
    answers(engine, [asked(masks_of(1, 2, 3, 4)), asked(masks_of(1, 2, 3, 4), **other)])
    assert engine.evaluator.rows == 8


def test_full_precision_is_another_answer_only_where_the_model_runs_in_reduced():
    for reduced, evaluated in ((False, 4), (True, 8)):
        engine = Engine(Fussy(), batch_size=8, unit=UNIT, memo=ScoreMemo(2**20, reduced=reduced))
        answers(engine, [asked(masks_of(1, 2, 3, 4)), asked(masks_of(1, 2, 3, 4), exact=True)])
        assert engine.evaluator.rows == evaluated


def test_large_masks_and_gradients_are_not_kept():
    engine, side = remembering(), int(MOST_CELLS**0.5) + 1
    answers(engine, [asked(torch.ones(1, side, side)), asked(masks_of(1, 2, 3, 4), gradient=True)])
    assert engine.memo.bytes == 0


def test_what_is_left_of_a_request_still_comes_in_whole_units():
    engine = remembering()
    answers(engine, [asked(masks_of(1, 2, 3, 4))])
    engine.evaluator.sizes.clear()
    answers(engine, [asked(masks_of(1, 9, 3, 8, 5, 6, 7, 0))])
    assert engine.evaluator.sizes == [8]
    _, task = answers(engine, [asked(masks_of(1, 15, 3, 8, 5, 6, 7, 0))])
    assert (engine.evaluator.sizes, task.usage.remembered) == ([8, 4], 4)


def test_a_budget_ends_a_search_at_the_same_place_whatever_is_remembered():
    engine, requests = remembering(), [asked(masks_of(*range(start, start + 4))) for start in range(0, 12, 4)]
    answers(engine, requests)
    ends = []
    got, task = answers(engine, requests, budget=Budget(evaluations=8), on_end=ends.append)
    assert (len(got), task.usage.evaluations) == (2, 8)
    assert "evaluations" in str(ends[0])


def test_the_attention_graph_after_sufficient_sets_searches_from_memory():
    evaluator = TorchEvaluator(
        module=LooksAtRegions(LEFT, RIGHT, combine="any"), device=torch.device("cpu"), quantum=UNIT, pads_small=False
    )
    engine, fresh = (Engine(evaluator, unit=UNIT, memo=memo) for memo in (ScoreMemo(2**24), None))

    def run(on, explainer):
        events = []
        question = Question(image=image(LEFT, RIGHT), target=1)
        task = Task(steps=explanation_steps(question, explainer, Metrics(curves=False)), on_event=events.append)
        on.run(task)
        return events, task.usage

    _, searched = run(engine, MinimalSufficientExplanations())
    events, used = run(engine, StructuredAttentionGraph())
    plain, alone = run(fresh, StructuredAttentionGraph())
    assert used.evaluations == alone.evaluations
    assert used.remembered >= 0.9 * searched.evaluations
    assert [repr(event) for event in events] == [repr(event) for event in plain]


def test_regions_that_were_scored_are_scored_again_from_memory():
    engine = remembering()
    problem = Problem(subject=Subject(PICTURE, BASELINE, 0), unmasked_score=1.0, baseline_score=0.0)
    for remembered in (0, 2):
        task = Task(steps=score_regions(problem, 2, [[0], [1, 2]]))
        engine.run(task)
        assert task.usage.remembered == remembered
