from collections import Counter
from contextlib import suppress

import torch

from sagittal.explain import score_regions
from sagittal.explain.sets.scoring import CHUNK, DOUBT, Memo, Scored, Threshold, TopClass


def test_a_set_is_evaluated_once(steps, known):
    kept = {}

    def make(problem):
        memo = kept["memo"] = Memo(problem=problem, grid=3, rule=Threshold(required_score=0.5))
        yield from memo.evaluate([1, 2, 1, 3])
        yield from memo.evaluate([3, 2, 4])

    run = steps(known.additive([0.1] * 9), 3, make)
    assert Counter(run.model.evaluated) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert kept["memo"].evaluations == run.usage.evaluations == 4


def test_a_score_near_the_required_one_is_measured_again_in_full_precision(steps, known):
    kept = {}

    def make(problem):
        memo = kept["memo"] = Memo(problem=problem, grid=3, rule=Threshold(required_score=0.2 + DOUBT / 2))
        yield from memo.evaluate([1, 3])

    steps(known.additive([0.1] * 9), 3, make)
    assert not kept["memo"][1].exact
    assert kept["memo"][3].exact


def test_large_levels_are_asked_for_in_chunks(known):
    from sagittal.engine.requests import Evaluate, Scores, Subject
    from sagittal.explain.problem import Problem

    image = torch.ones(3, 12, 12)
    memo = Memo(
        problem=Problem(subject=Subject(image, image, 0), unmasked_score=1, baseline_score=0),
        grid=4,
        rule=Threshold(required_score=0.5),
    )
    requests, answer = [], None
    asking = memo.evaluate(range(2 * CHUNK + 1))
    with suppress(StopIteration):
        while True:
            item, answer = asking.send(answer), None
            if isinstance(item, Evaluate):
                requests.append(len(item.masks))
                nothing = torch.zeros(len(item.masks))
                answer = Scores(nothing, nothing.long(), nothing)
    assert requests == [CHUNK, CHUNK, 1]


def test_the_top_class_rule_asks_for_the_rank_and_not_for_the_score():
    rule = TopClass(target=3)
    assert rule.holds(Scored(0.2, 3, 0.2, False))
    assert not rule.holds(Scored(0.45, 1, 0.46, False))
    assert rule.shortfall(Scored(0.2, 3, 0.2, False)) < 0 < rule.shortfall(Scored(0.4, 1, 0.5, False))


def test_regions_are_scored_shown_or_hidden_each_once(steps, known):
    kept = {}

    def make(problem):
        kept["shown"] = yield from score_regions(problem, 3, [[0, 1], [2], [1, 0]])
        kept["hidden"] = yield from score_regions(problem, 3, [[0, 1]], hide=True)

    run = steps(known.additive([0.3, 0.2, 0.4, 0, 0, 0, 0, 0, 0]), 3, make)
    assert [round(each.score, 5) for each in kept["shown"]] == [0.5, 0.4, 0.5]
    assert [round(each.score, 5) for each in kept["hidden"]] == [0.4]
    assert kept["shown"][1].top.index == 1
    assert run.usage.evaluations == 3
