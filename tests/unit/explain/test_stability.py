"""Stability over seeds, of methods whose dependence on the seed is known."""

from dataclasses import dataclass

import pytest
import torch
from known_models import LEFT, LooksAtRegions, image

from sagittal.engine import Budget, Engine, Task, TorchEvaluator
from sagittal.explain import Explainer, IGOSPlusPlus, Metrics, Occlusion, Question, explain
from sagittal.explain.events import Checkpoint, Curve, SaliencyMask, Stability, Truncated, Warning
from sagittal.explain.explanation import explanation_steps, measurements
from sagittal.explain.measures.stability import interval, rank_correlation
from sagittal.explain.steps import Steps

ORDER = torch.linspace(0, 1, 49).view(7, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance(Explainer):
    """A heatmap of which a share depends on the seed alone; it takes ten evaluations."""

    share: float = 1.0

    def explain(self, problem) -> Steps[None]:
        """Yields the heatmap."""
        yield from problem.evaluate(torch.ones(10, 1, 1))
        yield Checkpoint({"place": torch.ones(1)})
        noise = torch.rand(7, 7, generator=problem.generator("chance"))
        yield SaliencyMask((1 - self.share) * ORDER + self.share * noise)


def run(explainer: Explainer, metrics: Metrics, *, budget: Budget | None = None, **options):
    """Returns the events and the usage of an explanation."""
    events, ends = [], []
    task = Task(
        steps=explanation_steps(Question(image=image(LEFT), target=1, **options), explainer, metrics),
        on_event=events.append,
        on_end=ends.append,
        budget=budget or Budget(),
    )
    Engine(TorchEvaluator(module=LooksAtRegions(LEFT).eval(), device=torch.device("cpu"))).run(task)
    assert ends == [None]
    return events, task.usage


def of(events, kind: type):
    return [event for event in events if isinstance(event, kind)]


def test_a_heatmap_of_chance_is_flagged_and_one_without_chance_is_not():
    for share, unstable in ((1.0, True), (0.0, False)):
        events, _ = run(Chance(share=share), Metrics(stability=4))
        (found,) = of(events, Stability)
        assert (found.runs, found.unstable) == (5, unstable)
        assert found.lowest_rank_correlation <= found.rank_correlation
        assert ("HEATMAP_UNSTABLE" in {each.reason for each in of(events, Warning)}) == unstable
        if not unstable:
            assert found.rank_correlation == pytest.approx(1)
            assert float(found.deviation.max()) == pytest.approx(0, abs=1e-6)


def test_deviations_and_intervals_are_those_of_the_runs():
    metrics = Metrics(stability=3, steps=10)
    events, _ = run(Chance(share=0.5), metrics, seed=3)
    (found,) = of(events, Stability)
    (mask,) = of(events, SaliencyMask)
    assert found.deviation.shape == mask.saliency.shape
    # A share of one half of uniform noise has a standard deviation of 0.5 / sqrt(12).
    assert 0.1 < float(found.deviation.mean()) < 0.2
    insertion, deletion = of(events, Curve)
    for curve, area in ((insertion, found.insertion), (deletion, found.deletion)):
        assert area.low < area.high
        assert area.low - 0.2 < curve.auc < area.high + 0.2
    without, _ = run(Chance(share=0.5), Metrics(stability=2, curves=False))
    assert of(without, Stability)[0].insertion is None


def test_further_runs_are_measurements_that_no_budget_of_evaluations_limits():
    metrics = Metrics(stability=2, steps=10)
    _, plain = run(Chance(), Metrics(steps=10))
    events, usage = run(Chance(), metrics, budget=Budget(evaluations=10))
    curves = plain.metric_evaluations - 2  # the prediction and the baseline
    assert usage.evaluations - plain.evaluations == 2 * (10 + curves)
    assert usage.metric_evaluations - plain.metric_evaluations == 2 * (10 + curves)
    assert len(of(events, Stability)) == 1
    assert not of(events, Truncated)
    assert measurements(metrics, 56) == 3 * measurements(Metrics(steps=10), 56)


def test_a_resumed_job_repeats_no_finished_run():
    metrics = Metrics(stability=3, steps=10)
    events, usage = run(Chance(), metrics)
    state = next(each.state for each in of(events, Checkpoint) if len(each.state.get("stability.areas", ())) == 3)
    assert "place" in state
    again, resumed = run(Chance(), metrics, restored=state)
    one, other = of(events, Stability)[0], of(again, Stability)[0]
    assert torch.equal(one.deviation, other.deviation)
    assert (one.rank_correlation, one.insertion) == (other.rank_correlation, other.insertion)
    each = (usage.evaluations - resumed.evaluations) / 2
    assert each == pytest.approx((usage.evaluations - run(Chance(), Metrics(steps=10))[1].evaluations) / 3)


def test_a_deadline_leaves_the_finished_runs():
    clock = [0.0]
    events = []

    def note(event):
        events.append(event)
        if isinstance(event, Checkpoint) and len(event.state.get("stability.areas", ())) == 3:
            clock[0] = 200.0

    steps = explanation_steps(Question(image=image(LEFT), target=1), Chance(), Metrics(stability=5, steps=10))
    task = Task(steps=steps, on_event=note, budget=Budget(deadline=100.0), clock=lambda: clock[0])
    Engine(TorchEvaluator(module=LooksAtRegions(LEFT).eval(), device=torch.device("cpu"))).run(task)
    assert of(events, Stability)[0].runs == 3
    assert [each.limit for each in of(events, Truncated)] == ["deadline"]


def test_a_method_without_chance_is_perfectly_stable():
    found = explain(
        LooksAtRegions(LEFT),
        image(LEFT),
        Occlusion(),
        metrics=Metrics(stability=2),
    ).stability
    assert found is not None
    assert found.rank_correlation == pytest.approx(1)
    assert "rank correlation 1.00 with 2 other seeds; insertion " in found.text


def test_the_library_returns_it_and_documents_show_it():
    explanation = explain(
        LooksAtRegions(LEFT),
        image(LEFT),
        IGOSPlusPlus(mask_size=7, iterations=4, points=1, levels=0),
        metrics=Metrics(stability=2, steps=10),
    )
    document = explanation.to_dict()["stability"]
    assert (document["runs"], document["confidence"]) == (3, 0.9)
    assert document["mean_deviation"] >= 0
    assert document["insertion"][0] <= document["insertion"][1]
    assert "stability: rank correlation" in explanation._repr_html_()
    assert explanation.stability.deviation.shape == explanation.mask.shape


def test_rank_correlation_knows_ties_and_constants():
    assert rank_correlation(ORDER, 3 * ORDER**2) == pytest.approx(1)
    assert rank_correlation(ORDER, -ORDER) == pytest.approx(-1)
    assert rank_correlation(ORDER, torch.zeros(7, 7)) == 0
    assert rank_correlation(torch.ones(7, 7), torch.zeros(7, 7)) == 1
    # By hand: ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3.
    tied = rank_correlation(torch.tensor([0.0, 1, 1, 2]), torch.tensor([0.0, 1, 2, 3]))
    assert tied == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


@pytest.mark.parametrize("runs", [2, 5, 16])
def test_the_interval_contains_nine_of_ten_further_runs(runs):
    generator = torch.Generator().manual_seed(5)
    areas = 0.5 + 0.05 * torch.randn(4000, runs + 1, generator=generator, dtype=torch.float64)
    held = 0
    for *known, further in areas.tolist():
        found = interval(known)
        held += found.low <= further <= found.high
    assert held / len(areas) == pytest.approx(0.9, abs=0.015)
