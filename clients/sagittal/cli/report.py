"""An explanation as JSON, for people who script."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sagittal.client import CausalTriple, ClassScore, Curve, Explanation, Graph, Job, Model, SufficientSet


def explanation_json(explanation: Explanation, files: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `explanation.json` holds; `files` are names of files beside it, by what they are."""
    completed = explanation.completed
    document = {
        "job_id": explanation.job_id,
        "model": explanation.model,
        "model_version": explanation.model_version,
        "model_digest": explanation.model_digest,
        "method": explanation.method,
        "parameters": dict(explanation.parameters),
        "target": class_json(explanation.target) if explanation.target else None,
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
        "files": dict(files),
    }
    return document | dict(_found(explanation))


def _found(explanation: Explanation) -> Iterator[tuple[str, Any]]:
    """Yields what only some explanations hold, by its name."""
    completed, said = explanation.completed, explanation.concept_prediction
    if completed and completed.pointing_game_hit is not None:
        yield "pointing_game_hit", completed.pointing_game_hit
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


def curves_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Returns what `curves.json` holds."""
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


def class_json(score: ClassScore) -> dict[str, Any]:
    """Returns a class without its probability."""
    return {"index": score.index, "label": score.label}


def job_json(job: Job) -> dict[str, Any]:
    """Returns where a job stands."""
    return {
        "job_id": job.job_id,
        "state": job.state,
        "model": job.model,
        "model_version": job.model_version,
        "method": job.method,
        "lane": job.lane,
        "created": job.created.isoformat(),
        "ended": job.ended.isoformat() if job.ended else None,
        "attempt": job.attempt,
        "worker": job.worker,
        "failure_reason": job.failure_reason,
    }


def model_json(model: Model) -> dict[str, Any]:
    """Returns a model without its labels."""
    return {
        "name": model.name,
        "version": model.version,
        "latest": model.latest,
        "digest": model.digest,
        "source": model.source,
        "origin": model.origin,
        "tags": dict(model.tags),
        "classes": model.classes,
        "output": model.output,
        "ready_workers": model.ready_workers,
        "workers": [
            {"worker": each.worker, "state": each.state, "device": each.device, "message": each.message}
            for each in model.workers
        ],
        "capabilities": {
            "supports_gradients": model.supports_gradients,
            "deterministic": model.deterministic,
            "patch_grid": model.patch_grid,
            "input_sizes": [model.min_input_size, model.max_input_size],
            "evaluations_per_second": model.evaluations_per_second,
            "gradient_evaluations_per_second": model.gradient_evaluations_per_second,
            "weights_bytes": model.weights_bytes,
            "weights_digest": model.weights_digest,
            "activation_bytes": model.activation_bytes,
        },
        "checks": [{"name": each.name, "passed": each.passed, "detail": each.detail} for each in model.checks],
        "optimizations": [
            {"name": each.name, "applied": each.applied, "detail": each.detail} for each in model.optimizations
        ],
        "methods": [
            {
                "name": method.name,
                "unavailable": method.unavailable,
                "parameters": {parameter.name: parameter.default for parameter in method.parameters},
            }
            for method in model.methods
        ],
    }


def dump(document: object) -> str:
    """Returns JSON for people and programs alike."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def _baseline(explanation: Explanation) -> dict[str, Any] | None:
    prediction = explanation.prediction
    return (
        {"kind": prediction.baseline, "blur_sigma": prediction.blur_sigma}
        if prediction and prediction.baseline
        else None
    )


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
        },
        "causal": _causal(each.causal),
        "top": _scored(each.top),
        "evaluations": each.evaluations,
        "diverse": each.diverse,
    }


def _graph(graph: Graph) -> dict[str, Any]:
    nodes = [
        {
            "id": node.id,
            "grid": node.patches.grid,
            "patches": [list(cell) for cell in node.patches.cells],
            "score": node.score,
            "relative_score": node.relative_score,
            "root": node.root,
            "causal": _causal(node.causal),
            "top": _scored(node.top),
        }
        for node in graph.nodes
    ]
    grids = {node.id: node.patches.grid for node in graph.nodes}
    edges = [
        {
            "parent": edge.parent,
            "child": edge.child,
            "removed_patch": list(divmod(edge.removed_patch, grids.get(edge.child, 1))),
        }
        for edge in graph.edges
    ]
    return {"nodes": nodes, "edges": edges}


def _causal(triple: CausalTriple | None) -> dict[str, Any] | None:
    if triple is None:
        return None
    return {
        "sufficiency": triple.sufficiency,
        "without": triple.without,
        "top_without": _scored(triple.top_without),
    }


def _scored(score: ClassScore | None) -> dict[str, Any] | None:
    return class_json(score) | {"score": score.score} if score else None
