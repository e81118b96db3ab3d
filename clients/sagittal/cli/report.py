"""Jobs and models as JSON, for scripts."""

import json
from typing import Any

from sagittal.client import Job, Model

#: Names of the files in the directory of an explanation: its figures as JSON, and all of it for `Explanation.load`.
DOCUMENT, SAVED = "explanation.json", "explanation.zip"


def job_json(job: Job) -> dict[str, Any]:
    """Returns the state of a job."""
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
    """Returns formatted JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)
