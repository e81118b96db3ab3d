"""Robustness of certificates, on classifiers whose response to files, shifts and backgrounds is known."""

import pytest
import torch
from known_models import LEFT, LooksAtRegions, image
from torch import Tensor, nn

from sagittal.engine import Budget, Engine, Task, TorchEvaluator
from sagittal.explain import MinimalSufficientExplanations, PixelScale, Question, RobustnessTest, explain
from sagittal.explain.backgrounds import draw_background
from sagittal.explain.events import Checkpoint, SufficientSet, Truncated, Warning
from sagittal.explain.explanation import explanation_steps, measurements
from sagittal.explain.measures.curves import Metrics
from sagittal.explain.parameters import InvalidParameter

SCALE = PixelScale((-1.0,) * 3, (1.0,) * 3)
SEARCH = MinimalSufficientExplanations(grid=4)


class FearsNoise(nn.Module):
    """Sees the checkerboard only if what lies outside of it is smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.sees = LooksAtRegions(LEFT)

    def forward(self, inputs: Tensor) -> Tensor:
        rough = (inputs[..., 30:, 1:] - inputs[..., 30:, :-1]).abs().mean((1, 2, 3))
        return self.sees(inputs) - torch.stack([torch.zeros_like(rough), 200 * rough], -1)


def shown(scale: PixelScale = SCALE) -> Tensor:
    return scale.rounded(image(LEFT))


def assessed(model: nn.Module, test: RobustnessTest, **options):
    """Returns the last event of each set, and all events."""
    metrics = Metrics(curves=False, robustness=test)
    question = Question(image=options.pop("image", shown()), target=1, **({"pixels": SCALE} | options))
    return run(model, question, metrics)


def run(model: nn.Module, question: Question, metrics: Metrics, budget: Budget | None = None):
    events, ends = [], []
    task = Task(
        steps=explanation_steps(question, SEARCH, metrics),
        on_event=events.append,
        on_end=ends.append,
        budget=budget or Budget(),
    )
    Engine(TorchEvaluator(module=model.eval(), device=torch.device("cpu"))).run(task)
    assert ends == [None]
    sets = {event.patches: event for event in events if isinstance(event, SufficientSet)}
    return list(sets.values()), events, task.usage


@pytest.fixture(scope="module")
def plain():
    return assessed(LooksAtRegions(LEFT), RobustnessTest())


def test_a_checkerboard_survives_files_and_backgrounds_but_not_a_shift(plain):
    (found,), _, _ = plain
    robust = found.certificate.robust
    tests = {each.alteration.value: each for each in robust.alterations}
    assert {name: each.minimal for name, each in tests.items()} == {"rounding": True, "jpeg": True, "shift": False}
    assert not tests["shift"].sufficient
    assert tests["shift"].score < 0.1
    assert tests["rounding"].score == pytest.approx(found.score, abs=1e-4)
    assert tests["rounding"].removal_score < found.certificate.required_score
    assert (robust.minimal.held, robust.minimal.draws) == (33, 33)
    assert 0.9 <= robust.minimal.at_least == robust.sufficient.at_least < 0.91
    assert sum(each.draws for each in robust.backgrounds) == 33
    assert {each.kind for each in robust.backgrounds} == {"blur", "mean", "noise"}


def test_the_test_counts_as_a_measurement_and_not_towards_the_budget(plain):
    (found,), _, usage = plain
    _, _, without = run(LooksAtRegions(LEFT), Question(image=shown(), target=1, pixels=SCALE), Metrics(curves=False))
    rows = 1 + len(found.patches)
    assert usage.evaluations - without.evaluations == rows * (6 + 33)
    assert usage.metric_evaluations - without.metric_evaluations == rows * (6 + 33)
    budget = Budget(evaluations=without.evaluations - without.metric_evaluations)
    sets, _, _ = run(
        LooksAtRegions(LEFT),
        Question(image=shown(), target=1, pixels=SCALE),
        Metrics(curves=False, robustness=RobustnessTest(max_draws=3)),
        budget,
    )
    assert sets[0].certificate.robust.sufficient.draws == 3


def test_a_set_that_needs_a_smooth_background_is_not_certified_on_noise():
    sets, _, _ = assessed(FearsNoise(), RobustnessTest(max_draws=30))
    robust = sets[0].certificate.robust
    tally = {each.kind: each for each in robust.backgrounds}
    assert tally["noise"].sufficient == 0 < tally["noise"].draws
    assert tally["blur"].sufficient == tally["blur"].draws > 0
    assert robust.sufficient.draws == 30
    assert robust.sufficient.at_least < robust.sufficient.held / 30 < 0.9


def test_a_background_with_the_evidence_leaves_no_set_minimal():
    sets, _, _ = assessed(LooksAtRegions(LEFT), RobustnessTest(max_draws=30, images=[shown()]))
    tally = {each.kind: each for each in sets[0].certificate.robust.backgrounds}
    assert tally["image"].sufficient == tally["image"].draws > 0
    assert tally["image"].minimal < tally["image"].draws
    assert tally["noise"].minimal == tally["noise"].draws


def test_a_resumed_test_scores_nothing_again(plain):
    sets, events, usage = plain
    states = [event.state for event in events if isinstance(event, Checkpoint)]
    (place, state) = next((n, each) for n, each in enumerate(states) if len(each.get("robustness.scores", ())) > 60)
    assert place < len(states) - 1
    again, _, resumed = assessed(LooksAtRegions(LEFT), RobustnessTest(), restored=state)
    assert again == sets
    searched = len(state["scores.target"]) + len(state["altered-scores.target"])
    assert resumed.evaluations == usage.evaluations - searched - len(state["robustness.scores"])


def test_a_deadline_keeps_the_draws_so_far():
    class Clock:
        """Passes the deadline after a number of looks at it."""

        now = 0.0

    model, clock = LooksAtRegions(LEFT), Clock()
    seen = []
    task = Task(
        steps=explanation_steps(
            Question(image=shown(), target=1, pixels=SCALE),
            SEARCH,
            Metrics(curves=False, robustness=RobustnessTest()),
        ),
        on_event=lambda event: (seen.append(event), late(event)),
        budget=Budget(deadline=100.0),
        clock=lambda: clock.now,
    )

    def late(event):
        if isinstance(event, Checkpoint) and len(event.state.get("robustness.scores", ())) > 100:
            clock.now = 200.0

    Engine(TorchEvaluator(module=model.eval(), device=torch.device("cpu"))).run(task)
    last = [event for event in seen if isinstance(event, SufficientSet)][-1]
    assert 0 < last.certificate.robust.sufficient.draws < 33
    assert last.certificate.robust.sufficient.at_least < 0.9
    assert [event.limit for event in seen if isinstance(event, Truncated)] == ["deadline"]


def test_an_image_without_8_bit_pixels_is_not_tested_and_says_so():
    sets, events, _ = assessed(LooksAtRegions(LEFT), RobustnessTest(), image=image(LEFT) * 0.987654)
    assert sets[0].certificate.robust is None
    assert "ROBUSTNESS_NOT_TESTED" in {event.reason for event in events if isinstance(event, Warning)}


def test_the_library_tests_certificates_too():
    explanation = explain(
        LooksAtRegions(LEFT),
        shown(),
        SEARCH,
        pixels=SCALE,
        metrics=Metrics(curves=False, robustness=RobustnessTest(max_draws=2)),
    )
    robust = explanation.sufficient_sets[0].certificate.robust
    assert robust.survives == {"rounding": True, "jpeg": True, "shift": False}
    assert "holds 8-bit, JPEG 95; does not hold shifted by a pixel" in robust.text
    assert "(2 of 2 drawn)" in robust.text
    assert explanation.to_dict()["sufficient_sets"][0]["certificate"]["robust"]["sufficient"]["draws"] == 2
    assert "JPEG 95" in explanation._repr_html_()


class Recorder(nn.Module):
    """Keeps every image that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.sees, self.inputs = LooksAtRegions(LEFT), []

    def forward(self, inputs: Tensor) -> Tensor:
        self.inputs += list(inputs)
        return self.sees(inputs)


@pytest.mark.parametrize("patch_shape", ["box", "tent"])
def test_every_composed_image_has_8_bit_pixels(patch_shape):
    model = Recorder()
    explain(model, shown(), MinimalSufficientExplanations(grid=4, patch_shape=patch_shape), pixels=SCALE)
    assert len(model.inputs) > 20
    assert all((SCALE.rounded(each) - each).abs().max() < 1e-5 for each in model.inputs)


def test_draws_depend_on_the_seed_alone_and_never_show_the_image():
    picture = shown()

    def draws(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return [draw_background(picture, (), generator) for _ in range(12)]

    one, same, other = draws(0), draws(0), draws(1)
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    top, left, bottom, right = LEFT
    for drawn in one:
        board = drawn.image[:, top:bottom, left:right] * picture[:, top:bottom, left:right]
        assert board.mean().abs() < 0.2


@pytest.mark.parametrize(
    ("name", "options"),
    [("delta", {"delta": 0.0}), ("confidence", {"confidence": 1.0}), ("max_draws", {"max_draws": 0})],
)
def test_options_out_of_bounds_are_refused(name, options):
    with pytest.raises(InvalidParameter, match=f"^{name}: is"):
        RobustnessTest(**options)


def test_the_time_before_a_deadline_allows_for_the_test():
    assert measurements(Metrics(robustness=RobustnessTest()), 224) > measurements(Metrics(), 224)
