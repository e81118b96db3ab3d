"""A search that is cut off repeats itself from its recording, without the model, and goes on."""

from collections import Counter
from dataclasses import replace

import pytest

from sagittal.explain import Explainer, MinimalSufficientExplanations, StructuredAttentionGraph
from sagittal.explain.events import Checkpoint, Event, GraphEdge, GraphNode, SufficientSet, Warning

FINDINGS = (SufficientSet, GraphNode, GraphEdge, Warning)


def findings(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, FINDINGS)]


@pytest.mark.parametrize(
    "explainer",
    [
        MinimalSufficientExplanations(grid=5),
        MinimalSufficientExplanations(grid=4, sufficiency="top-class", patch_shape="tent"),
        StructuredAttentionGraph(grid=5),
    ],
    ids=["mse", "top-class", "sag"],
)
def test_a_resumed_search_finds_the_same_and_scores_nothing_again(steps, known, explainer: Explainer):
    score = known.any_of([0, 1, 5], [7, 12, 13])
    undisturbed = steps(score, explainer.grid, explainer.explain)
    checkpoints = undisturbed.of(Checkpoint)
    assert len(checkpoints) > 8
    behind = 0
    for checkpoint in checkpoints[:: len(checkpoints) // 8]:
        resumed = steps(
            score,
            explainer.grid,
            lambda problem, state=checkpoint.state: explainer.explain(replace(problem, restored=state)),
        )
        behind = len(checkpoint.state["scores.target"])
        assert findings(resumed.events) == findings(undisturbed.events)
        assert resumed.usage.evaluations == undisturbed.usage.evaluations - behind
        assert Counter(resumed.model.evaluated) <= Counter(undisturbed.model.evaluated)
        last = resumed.of(Checkpoint)[-1].state if resumed.of(Checkpoint) else checkpoint.state
        assert {name: tensor.tolist() for name, tensor in last.items()} == {
            name: tensor.tolist() for name, tensor in checkpoints[-1].state.items()
        }
    assert behind > 50
