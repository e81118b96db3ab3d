"""Events of the API as the client's dataclasses: one small function for each kind, and a table of them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2

from sagittal.client.arrays import to_array
from sagittal.client.errors import InternalError
from sagittal.client.events import (
    Accepted,
    CausalTriple,
    Certificate,
    ClassScore,
    Completed,
    Concept,
    ConceptPrediction,
    Curve,
    Event,
    GraphEdge,
    GraphNode,
    Mask,
    PatchSet,
    Prediction,
    Progress,
    Started,
    SufficientSet,
    Unrecognised,
    Warned,
)
from sagittal.v1 import explanation_pb2 as pb


def parse_event(event: pb.ExplanationEvent) -> Event:
    """Returns a non-failing event as its dataclass; `failed` and `cancelled` are errors and not parsed here.

    Raises:
        InternalError: the event makes no sense, such as a mask whose bytes do not fill its shape.
    """
    try:
        return _parsed(event)
    except (ValueError, OverflowError) as error:
        text = f"event {event.sequence} of job {event.job_id} cannot be read: {error}"
        raise InternalError(text, job_id=event.job_id) from error


def _parsed(event: pb.ExplanationEvent) -> Event:
    common: dict[str, Any] = {
        "job_id": event.job_id,
        "sequence": event.sequence,
        "time": to_datetime(event.time),
        "request_id": event.request_id,
    }
    kind = event.WhichOneof("event")
    parser = _PARSERS.get(kind or "")
    return Unrecognised(**common) if parser is None else parser(getattr(event, str(kind)), common)


def to_datetime(time: timestamp_pb2.Timestamp) -> datetime:
    """Returns a timestamp in UTC."""
    return time.ToDatetime(tzinfo=UTC)


def to_seconds(duration: duration_pb2.Duration) -> float:
    """Returns a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def parse_class(score: pb.ClassScore) -> ClassScore:
    """Returns a class with its probability."""
    return ClassScore(score.index, score.label, score.score)


def enum_name(wrapper: Any, value: int, prefix: str) -> str:
    """Returns an enum value as a lower-case name, such as "line-search"."""
    known = {number: name for name, number in wrapper.items()}
    return str(known.get(value, f"{prefix}{value}")).removeprefix(prefix).lower().replace("_", "-")


def _causal(message: pb.SufficientSet | pb.GraphNode) -> CausalTriple | None:
    if not message.HasField("causal"):
        return None
    triple = message.causal
    return CausalTriple(triple.sufficiency, triple.without, parse_class(triple.top_without))


def _patches(message: pb.PatchSet) -> PatchSet:
    return PatchSet(message.grid, tuple(message.patches))


def _accepted(event: pb.Accepted, common: dict[str, Any]) -> Event:
    return Accepted(
        queue_position=event.queue_position,
        estimated_evaluations=event.estimated_evaluations,
        ready_workers=event.ready_workers,
        estimated_seconds=to_seconds(event.estimated_run_time) if event.HasField("estimated_run_time") else None,
        **common,
    )


def _started(event: pb.Started, common: dict[str, Any]) -> Event:
    return Started(worker=event.worker, attempt=event.attempt, waited_seconds=to_seconds(event.waited), **common)


def _prediction(event: pb.Prediction, common: dict[str, Any]) -> Event:
    return Prediction(
        target=parse_class(event.target),
        top=tuple(map(parse_class, event.top)),
        baseline_score=event.baseline_score,
        baseline=enum_name(pb.BaselineKind, event.baseline, "BASELINE_KIND_") if event.baseline else "",
        blur_sigma=event.blur_sigma,
        **common,
    )


def _progress(event: pb.Progress, common: dict[str, Any]) -> Event:
    return Progress(
        fraction=event.fraction,
        evaluations=event.evaluations,
        objective=event.objective if event.HasField("objective") else None,
        phase=event.phase,
        **common,
    )


def _mask(event: pb.Mask, common: dict[str, Any]) -> Event:
    return Mask(saliency=to_array(event.saliency), final=event.final, index=event.index, signed=event.signed, **common)


def _sufficient_set(event: pb.SufficientSet, common: dict[str, Any]) -> Event:
    certificate = event.certificate
    return SufficientSet(
        patches=_patches(event.patches),
        score=event.score,
        certificate=Certificate(
            level=enum_name(pb.CertificateLevel, certificate.level, "CERTIFICATE_LEVEL_"),
            checked=certificate.checked,
            required_score=certificate.required_score,
            model_digest=certificate.model_digest,
        ),
        causal=_causal(event),
        evaluations=event.evaluations,
        diverse=event.diverse,
        **common,
    )


def _graph_node(event: pb.GraphNode, common: dict[str, Any]) -> Event:
    return GraphNode(
        id=event.id,
        patches=_patches(event.patches),
        score=event.score,
        relative_score=event.relative_score,
        root=event.root,
        causal=_causal(event),
        **common,
    )


def _graph_edge(event: pb.GraphEdge, common: dict[str, Any]) -> Event:
    return GraphEdge(parent=event.parent, child=event.child, removed_patch=event.removed_patch, **common)


def _curve(event: pb.Curve, common: dict[str, Any]) -> Event:
    return Curve(
        kind=enum_name(pb.CurveKind, event.kind, "CURVE_KIND_"),
        fractions=np.array(event.fractions, np.float32),
        scores=np.array(event.scores, np.float32),
        auc=event.auc,
        auc_normalized=event.auc_normalized,
        mask_index=event.mask_index,
        **common,
    )


def _concept(event: pb.ConceptContribution, common: dict[str, Any]) -> Event:
    return Concept(
        index=event.index,
        name=event.name,
        value=event.value,
        contribution=event.contribution,
        heatmap=to_array(event.heatmap.saliency) if event.HasField("heatmap") else None,
        **common,
    )


def _concept_prediction(event: pb.ConceptPrediction, common: dict[str, Any]) -> Event:
    return ConceptPrediction(
        target=parse_class(event.target),
        predicted=event.predicted,
        output=event.output,
        gap=event.gap,
        usual_error=event.usual_error,
        **common,
    )


def _warning(event: pb.Warning, common: dict[str, Any]) -> Event:
    return Warned(reason=event.reason, message=event.message, **common)


def _completed(event: pb.Completed, common: dict[str, Any]) -> Event:
    return Completed(
        insertion=event.insertion if event.HasField("insertion") else None,
        deletion=event.deletion if event.HasField("deletion") else None,
        evaluations=event.evaluations,
        gradient_evaluations=event.gradient_evaluations,
        metric_evaluations=event.metric_evaluations,
        cache_hits=event.cache_hits,
        run_seconds=to_seconds(event.run_time),
        wait_seconds=to_seconds(event.wait_time),
        model_digest=event.model_digest,
        model_version=event.model_version,
        seed=event.seed,
        method=event.method,
        parameters_json=event.parameters_json,
        versions=dict(event.versions),
        truncated=event.truncated,
        truncated_by=event.truncated_by,
        pointing_game_hit=event.pointing_game_hit if event.HasField("pointing_game_hit") else None,
        cache_age_seconds=to_seconds(event.cache_age) if event.HasField("cache_age") else None,
        **common,
    )


_PARSERS: Mapping[str, Callable[[Any, dict[str, Any]], Event]] = {
    "accepted": _accepted,
    "started": _started,
    "prediction": _prediction,
    "progress": _progress,
    "mask": _mask,
    "sufficient_set": _sufficient_set,
    "graph_node": _graph_node,
    "graph_edge": _graph_edge,
    "curve": _curve,
    "concept": _concept,
    "concept_prediction": _concept_prediction,
    "warning": _warning,
    "completed": _completed,
}
