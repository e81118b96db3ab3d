"""A photograph explained by the real model through real processes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from e2e_stack import Stack, promised_tolerance

from sagittal.client import AsyncClient, Client, Expired, Explanation, IGOSPlusPlus, Mask, Metrics, Progress

CHELSEA = Path(__file__).parents[2] / "examples" / "images" / "chelsea.png"
QUICK = IGOSPlusPlus(mask_size=14, iterations=4)

pytestmark = pytest.mark.real_model


@pytest.fixture
def client(real_stack: Stack) -> Iterator[Client]:
    """A client of the installation with the real model."""
    with Client(real_stack.address) as connected:
        yield connected


def test_a_photograph_is_explained_as_it_forms(client: Client):
    events = list(client.stream(CHELSEA, model="efficientnet-lite0", method=QUICK, partial_masks=True, cache="bypass"))
    kinds = [type(event).__name__ for event in events]
    assert kinds[:3] == ["Accepted", "Started", "Prediction"]
    assert kinds[-1] == "Completed"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert any(isinstance(event, Progress) and event.objective is not None for event in events)
    assert [event.final for event in events if isinstance(event, Mask)][-1]


def test_the_whole_explanation_is_there_in_three_lines(client: Client):
    explanation = client.explain(CHELSEA, model="efficientnet-lite0", method=QUICK, target="Egyptian cat")
    assert explanation.target.label == "Egyptian cat"
    assert explanation.mask.shape == (14, 14)
    assert 0 <= explanation.mask.min() <= explanation.mask.max() <= 1
    assert explanation.insertion > explanation.deletion
    assert explanation.baseline_score < 0.05 * explanation.score
    assert explanation.evaluations > explanation.gradient_evaluations > 0
    assert len(explanation.model_digest) == 64


def test_the_same_seed_repeats_the_same_result(client: Client):
    runs = [client.explain(CHELSEA, model="efficientnet-lite0", method=QUICK, seed=7, cache="bypass") for _ in range(2)]
    other = client.explain(CHELSEA, model="efficientnet-lite0", method=QUICK, seed=8, cache="bypass")
    tolerance = promised_tolerance(client.model("efficientnet-lite0"))
    np.testing.assert_allclose(runs[0].mask, runs[1].mask, rtol=0, atol=tolerance)
    assert runs[0].insertion == pytest.approx(runs[1].insertion, abs=tolerance)
    assert np.abs(runs[0].mask - other.mask).max() > 0.01


def explain_until(client: Client, deadline: float, **options) -> Explanation:
    """Returns a result by a deadline; a busy machine that has none by then gets four times as long."""
    try:
        return client.explain(CHELSEA, deadline=deadline, cache="bypass", **options)
    except Expired:
        return explain_until(client, 4 * deadline, **options)


@pytest.mark.parametrize("lane", ["interactive", "batch"])
def test_a_deadline_ends_the_search_and_the_best_result_is_marked_as_cut(client: Client, lane):
    endless = IGOSPlusPlus(mask_size=7, iterations=1_000, points=64, tolerance=0)
    found = explain_until(
        client, 1, model="efficientnet-lite0", method=endless, metrics=Metrics(curve_steps=150), lane=lane
    )
    assert (found.state, found.completed.truncated_by) == ("completed", "deadline")
    assert found.mask.shape == (7, 7)


@pytest.mark.parametrize("lane", ["interactive", "batch"])
def test_a_deadline_that_is_too_short_is_the_error_and_advises_no_lane(client: Client, lane):
    with pytest.raises(Expired) as caught:
        client.explain(CHELSEA, model="efficientnet-lite0", deadline=0.001, lane=lane, cache="bypass")
    assert "lane" not in str(caught.value)


async def test_asyncio_gets_the_same(real_stack):
    async with AsyncClient(real_stack.address) as client:
        explanation = await client.explain(CHELSEA, model="efficientnet-lite0", method=QUICK)
    assert explanation.mask.shape == (14, 14)


def test_prediction(client: Client):
    top = client.predict(CHELSEA, model="efficientnet-lite0", top=3)
    assert top[0].label == "Egyptian cat"
    assert len(top) == 3


def test_the_model_says_what_it_is_and_what_was_done_to_it(client: Client):
    model = client.model("efficientnet-lite0")
    assert len(model.labels) == 1000
    applied = {step.name for step in model.optimizations if step.applied}
    assert {"fold-batch-norm", "merge-padding", "freeze-convolutions"} <= applied
    assert model.supports_gradients
    assert "igos++" in {method.name for method in model.methods}


def test_a_worker_that_dies_is_a_pause_to_the_caller(private_stack):
    """The worker is killed in the middle; another goes on; the stream never breaks and nothing is repeated."""
    stack = private_stack
    stack.start_service()
    first = stack.start_worker()
    stack.wait_for_model("left")
    with Client(stack.address) as client:
        events = []
        long = IGOSPlusPlus(mask_size=7, iterations=150, points=8, tolerance=0)
        for event in client.stream(CHELSEA, model="left", target=1, method=long, progress_interval=0.0):
            events.append(event)
            if isinstance(event, Progress) and first.process.poll() is None:
                first.stop(signal.SIGKILL)
                stack.start_worker()
    attempts = [event.attempt for event in events if type(event).__name__ == "Started"]
    assert attempts == [1, 2]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert type(events[-1]).__name__ == "Completed"
