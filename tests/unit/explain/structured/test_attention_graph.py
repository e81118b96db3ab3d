from collections import Counter

import pytest

from sagittal.engine import Budget
from sagittal.explain import StructuredAttentionGraph
from sagittal.explain.events import GraphEdge, GraphNode, Progress, SufficientSet, Surrogate, Truncated
from sagittal.explain.sets import attention_graph
from sagittal.explain.sets.patches import removals
from sagittal.imaging.patch_sets import bits_of


def graph(run):
    nodes = {node.patches: node for node in run.of(GraphNode)}
    assert len(nodes) == len(run.of(GraphNode))
    return nodes, run.of(GraphEdge)


def test_nodes_that_are_reached_twice_are_shared(search, known):
    weights = [0.0] * 9
    weights[0], weights[1], weights[2], weights[3] = 0.24, 0.23, 0.22, 0.21
    run = search(known.additive(weights), StructuredAttentionGraph(grid=3, threshold=1, children=4, max_overlap=0))
    nodes, edges = graph(run)
    assert [node.patches for node in nodes.values() if node.root] == [(0, 1, 2, 3)]
    parents = Counter(edge.child for edge in edges)
    assert parents[nodes[0, 1].id] == 2
    assert all(int(edge.parent, 16) - int(edge.child, 16) == 1 << edge.removed_patch for edge in edges)


def test_nodes_come_before_their_edges(search, known):
    run = search(known.any_of([0, 1, 2], [6, 7]), StructuredAttentionGraph(grid=3))
    seen = set()
    for event in run.events:
        if isinstance(event, GraphNode):
            seen.add(event.id)
        if isinstance(event, GraphEdge):
            assert {event.parent, event.child} <= seen


def test_roots_are_the_diverse_sets_with_what_they_cause(search, known):
    run = search(known.any_of([0, 1, 2], [6, 7]), StructuredAttentionGraph(grid=3))
    nodes, _ = graph(run)
    roots = {patches: node for patches, node in nodes.items() if node.root}
    assert set(roots) == {(0, 1, 2), (6, 7)} == {event.patches for event in run.of(SufficientSet)}
    assert all(node.causal is not None for node in roots.values())
    assert roots[6, 7].relative_score == pytest.approx(1.0)


def test_all_single_removals_of_every_root_are_evaluated(search, known):
    run = search(known.any_of([0, 1, 2, 3, 4]), StructuredAttentionGraph(children=1))
    assert set(removals(bits_of([0, 1, 2, 3, 4]))) <= set(run.model.evaluated)


def test_the_children_shown_lower_the_score_most(search, known):
    weights = [0.0] * 9
    weights[0], weights[4], weights[8] = 0.5, 0.3, 0.15
    run = search(
        known.additive(weights), StructuredAttentionGraph(grid=3, threshold=0.99, children=2, expand_above=0.99)
    )
    _, edges = graph(run)
    assert [edge.removed_patch for edge in edges] == [0, 4]


def test_nodes_are_expanded_while_they_keep_the_confidence(search, known):
    weights = [0.0] * 9
    weights[0], weights[4], weights[8] = 0.5, 0.3, 0.15
    score = known.additive(weights)
    run = search(score, StructuredAttentionGraph(grid=3, threshold=0.99, children=9, expand_above=0.6))
    nodes, edges = graph(run)
    parents = {edge.parent for edge in edges}
    assert parents == {node.id for node in nodes.values() if node.root or node.relative_score > 0.6}


def test_the_bound_on_nodes_is_reported_when_it_binds(search, known):
    score = known.any_of([0, 1, 2, 3, 4])
    run = search(score, StructuredAttentionGraph(max_nodes=3))
    assert len(run.of(GraphNode)) == 3
    assert "NODES_BOUND" in run.warnings
    assert "NODES_BOUND" not in search(score, StructuredAttentionGraph()).warnings


def test_a_spent_budget_still_draws_the_roots(search, known):
    run = search(known.any_of([0, 1, 2]), StructuredAttentionGraph(), Budget(evaluations=70))
    assert len(run.of(Truncated)) == 1
    assert [node.root for node in run.of(GraphNode)][:1] == [True]


def test_progress_only_goes_forward(search, known):
    run = search(known.any_of([0, 1, 2], [6, 7]), StructuredAttentionGraph(grid=3))
    fractions = [event.fraction for event in run.of(Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_random_occlusions_make_a_surrogate_of_all_scores(search, known):
    score = known.any_of([0, 1, 2], [6, 7])
    plain, run = (search(score, StructuredAttentionGraph(grid=3, occlusions=count)) for count in (0, 30))
    assert plain.of(Surrogate) == []
    (surrogate,) = run.of(Surrogate)
    assert run.usage.evaluations == plain.usage.evaluations + 30
    assert surrogate.occlusions.shape[1:] == (3, 3)
    assert len(surrogate.scores) == len(surrogate.occlusions) > 30
    assert [node.patches for node in run.of(GraphNode)] == [node.patches for node in plain.of(GraphNode)]


def test_the_surrogate_of_a_long_search_has_a_bounded_number_of_scores(search, known, monkeypatch):
    score = known.any_of([0, 1, 2], [6, 7])
    (every,) = search(score, StructuredAttentionGraph(grid=3, occlusions=30)).of(Surrogate)
    sets = len(every.scores) - 30
    monkeypatch.setattr(attention_graph, "MOST", 30 + sets // 2)
    (bounded,) = search(score, StructuredAttentionGraph(grid=3, occlusions=30)).of(Surrogate)
    assert sets > 10
    assert 30 + sets // 4 <= len(bounded.scores) <= 30 + sets // 2


def test_a_budget_that_ends_before_the_occlusions_leaves_the_graph(search, known):
    score = known.any_of([0, 1, 2], [6, 7])
    usage = search(score, StructuredAttentionGraph(grid=3)).usage
    budget = Budget(evaluations=usage.evaluations - usage.metric_evaluations + 29)
    run = search(score, StructuredAttentionGraph(grid=3, occlusions=30), budget=budget)
    assert run.of(Truncated) == [Truncated("evaluations")]
    assert run.of(GraphNode)
    assert run.of(Surrogate) == []
