"""An explanation as a document: plain values for JSON, and rows for tables."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sagittal.client.events import CausalTriple, ClassScore, Curve, GraphNode, Stability, SufficientSet, Surrogate
from sagittal.client.explanation import Explanation, Graph


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Returns the content of an explanation without its arrays: masks by their shape, curves by their areas."""
    completed = explanation.completed
    document = {
        "job_id": explanation.job_id,
        "state": explanation.state,
        "model": explanation.model,
        "model_version": explanation.model_version,
        "model_digest": explanation.model_digest,
        "method": explanation.method,
        "parameters": dict(explanation.parameters),
        "target": class_document(explanation.target) if explanation.target else None,
        "score": explanation.score,
        "baseline_score": explanation.baseline_score,
        "baseline": _baseline(explanation),
        "top": [_scored(each) for each in explanation.prediction.top] if explanation.prediction else [],
        "insertion": explanation.insertion,
        "deletion": explanation.deletion,
        "relative_insertion": explanation.relative_insertion,
        "relative_deletion": explanation.relative_deletion,
        "evaluations": explanation.evaluations,
        "gradient_evaluations": explanation.gradient_evaluations,
        "metric_evaluations": completed.metric_evaluations if completed else 0,
        "seconds": explanation.seconds,
        "wait_seconds": completed.wait_seconds if completed else None,
        "seed": explanation.seed,
        "truncated": completed.truncated if completed else False,
        "cache_age_seconds": completed.cache_age_seconds if completed else None,
        "warnings": [{"reason": each.reason, "message": each.message} for each in explanation.warnings],
        "versions": dict(completed.versions) if completed else {},
    }
    return document | dict(_found(explanation))


def explanation_row(explanation: Explanation) -> dict[str, Any]:
    """Returns the figures of an explanation, one value each, for a table of many."""
    target, sets = explanation.target, explanation.sufficient_sets
    return {
        "job_id": explanation.job_id,
        "state": explanation.state,
        "model": explanation.model,
        "model_version": explanation.model_version,
        "method": explanation.method,
        "target": target.label if target else "",
        "target_index": target.index if target else None,
        "score": explanation.score,
        "baseline_score": explanation.baseline_score,
        "insertion": explanation.insertion,
        "deletion": explanation.deletion,
        "relative_insertion": explanation.relative_insertion,
        "relative_deletion": explanation.relative_deletion,
        "sufficient_sets": len(sets),
        "smallest_set": min((len(each.patches.patches) for each in sets), default=None),
        "evaluations": explanation.evaluations,
        "seconds": explanation.seconds,
        "seed": explanation.seed,
        "truncated": explanation.completed.truncated if explanation.completed else False,
        "warnings": ", ".join(each.reason for each in explanation.warnings),
        "error": str(explanation.error) if explanation.error else "",
    }


def curves_document(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Returns curves with all their points."""
    return [
        {
            "kind": curve.kind,
            "mask_index": curve.mask_index,
            "auc": curve.auc,
            "auc_normalized": curve.auc_normalized,
            "fractions": curve.fractions.tolist(),
            "scores": curve.scores.tolist(),
        }
        for curve in curves
    ]


def class_document(score: ClassScore) -> dict[str, Any]:
    """Returns a class without its probability."""
    return {"index": score.index, "label": score.label}


def _found(explanation: Explanation) -> Iterator[tuple[str, Any]]:
    """Yields the parts that only some explanations have, by name."""
    completed, said = explanation.completed, explanation.concept_prediction
    if completed and completed.pointing_game_hit is not None:
        yield "pointing_game_hit", completed.pointing_game_hit
    if completed and completed.predictability_auroc is not None:
        yield "predictability_auroc", completed.predictability_auroc
        yield "predictability_balanced_accuracy", completed.predictability_balanced_accuracy
    if explanation.surrogate is not None:
        yield "surrogate", _surrogate(explanation.surrogate)
    if explanation.stability is not None:
        yield "stability", _stability(explanation.stability)
    if explanation.sufficient_sets:
        yield "sufficient_sets", [_sufficient_set(each) for each in explanation.sufficient_sets]
    if explanation.graph is not None:
        yield "graph", _graph(explanation.graph)
    if said is not None:
        numbers = ("predicted", "output", "gap", "usual_error")
        yield "concept_prediction", {name: getattr(said, name) for name in numbers}
    if explanation.concepts:
        fields = ("index", "name", "value", "contribution")
        yield "concepts", [{name: getattr(each, name) for name in fields} for each in explanation.concepts]
    if explanation.error is not None:
        yield "error", {"reason": explanation.error.reason, "message": explanation.error.message}


def _baseline(explanation: Explanation) -> dict[str, Any] | None:
    prediction = explanation.prediction
    return (
        {"kind": prediction.baseline, "blur_sigma": prediction.blur_sigma}
        if prediction and prediction.baseline
        else None
    )


def _surrogate(found: Surrogate) -> dict[str, Any]:
    return {
        "occlusions": len(found.scores),
        "grid": found.relevance.shape[0],
        "noise": found.noise,
        "usual_error": found.usual_error,
    }


def _stability(found: Stability) -> dict[str, Any]:
    """Returns the figures of a stability, and the mean over the cells of their deviation."""
    numbers = ("runs", "rank_correlation", "lowest_rank_correlation", "unstable", "confidence")
    areas = {"insertion": found.insertion, "deletion": found.deletion}
    return {
        **{name: getattr(found, name) for name in numbers},
        **{name: None if area is None else [area.low, area.high] for name, area in areas.items()},
        "mean_deviation": float(found.deviation.mean()),
    }


def _sufficient_set(each: SufficientSet) -> dict[str, Any]:
    return {
        "grid": each.patches.grid,
        "patches": [list(cell) for cell in each.patches.cells],
        "score": each.score,
        "certificate": {
            "level": each.certificate.level,
            "checked": each.certificate.checked,
            "required_score": each.certificate.required_score,
            "model_digest": each.certificate.model_digest,
            "robust": None if each.certificate.robust is None else asdict(each.certificate.robust),
        },
        "causal": _causal(each.causal),
        "top": _scored(each.top),
        "evaluations": each.evaluations,
        "diverse": each.diverse,
    }


def _graph(graph: Graph) -> dict[str, Any]:
    grids = {node.id: node.patches.grid for node in graph.nodes}
    edges = [
        {
            "parent": edge.parent,
            "child": edge.child,
            "removed_patch": list(divmod(edge.removed_patch, grids.get(edge.child, 1))),
        }
        for edge in graph.edges
    ]
    return {"nodes": [{"id": node.id} | node_document(node) for node in graph.nodes], "edges": edges}


def node_document(node: GraphNode) -> dict[str, Any]:
    """Returns a node of an attention graph without its id."""
    return {
        "grid": node.patches.grid,
        "patches": [list(cell) for cell in node.patches.cells],
        "score": node.score,
        "relative_score": node.relative_score,
        "root": node.root,
        "causal": _causal(node.causal),
        "top": _scored(node.top),
    }


def _causal(triple: CausalTriple | None) -> dict[str, Any] | None:
    if triple is None:
        return None
    return {
        "sufficiency": triple.sufficiency,
        "without": triple.without,
        "top_without": _scored(triple.top_without),
    }


def _scored(score: ClassScore | None) -> dict[str, Any] | None:
    return class_document(score) | {"score": score.score} if score else None
