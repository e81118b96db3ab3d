"""What explainers tell, as events of the API: a table from the library's types to messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sagittal.core.tensors import tensor_of
from sagittal.explain import events
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2
from sagittal.worker.concept_jobs import Answer, answer_event

_BASELINES = {
    "blur": pb.BASELINE_KIND_BLUR,
    "black": pb.BASELINE_KIND_BLACK,
    "mean": pb.BASELINE_KIND_MEAN,
    "noise": pb.BASELINE_KIND_NOISE,
    "image": pb.BASELINE_KIND_IMAGE,
}

_LEVELS = {
    events.CertificateLevel.SUFFICIENT: pb.CERTIFICATE_LEVEL_SUFFICIENT,
    events.CertificateLevel.ONE_MINIMAL: pb.CERTIFICATE_LEVEL_ONE_MINIMAL,
    events.CertificateLevel.SUBSET_MINIMAL: pb.CERTIFICATE_LEVEL_SUBSET_MINIMAL,
    events.CertificateLevel.MINIMUM_SIZE: pb.CERTIFICATE_LEVEL_MINIMUM_SIZE,
}

_CURVES = {
    events.CurveKind.INSERTION: pb.CURVE_KIND_INSERTION,
    events.CurveKind.DELETION: pb.CURVE_KIND_DELETION,
}


class Wire:
    """Turns events of one job into messages, with the labels and the digest of its model."""

    def __init__(self, labels: Sequence[str], digest: str) -> None:
        """Takes labels by class index (empty for none) and the model's digest."""
        self._labels = labels
        self._digest = digest
        self._table: Mapping[type, Callable[[Any, int], pb.ExplanationEvent]] = {
            events.Prediction: self._prediction,
            events.Progress: self._progress,
            events.SaliencyMask: self._mask,
            events.SufficientSet: self._sufficient_set,
            events.GraphNode: self._node,
            events.GraphEdge: self._edge,
            events.RegionScores: self._regions,
            events.Curve: self._curve,
            events.ConceptPrediction: self._concept_prediction,
            events.ConceptContribution: self._concept,
            Answer: answer_event,
            events.Notice: self._notice,
        }

    def message(self, event: events.Event, evaluations: int) -> pb.ExplanationEvent | None:
        """Returns the message of an event, or None for those that are not sent.

        Args:
            event: What an explainer yielded.
            evaluations: Model evaluations of the job so far.
        """
        convert = self._table.get(type(event))
        return convert(event, evaluations) if convert else None

    def _class(self, found: events.ClassScore) -> pb.ClassScore:
        label = self._labels[found.index] if found.index < len(self._labels) else ""
        return pb.ClassScore(index=found.index, label=label, score=found.score)

    def _prediction(self, event: events.Prediction, _: int) -> pb.ExplanationEvent:
        prediction = pb.Prediction(
            target=self._class(event.target),
            top=[self._class(found) for found in event.top],
            baseline_score=event.baseline_score,
            baseline=_BASELINES.get(event.baseline, pb.BASELINE_KIND_UNSPECIFIED),
            blur_sigma=event.blur_sigma,
        )
        return pb.ExplanationEvent(prediction=prediction)

    @staticmethod
    def _progress(event: events.Progress, evaluations: int) -> pb.ExplanationEvent:
        progress = pb.Progress(
            fraction=event.fraction,
            evaluations=evaluations,
            objective=event.objective,
            phase=event.phase,
            terms=event.terms,
        )
        return pb.ExplanationEvent(progress=progress)

    @staticmethod
    def _mask(event: events.SaliencyMask, _: int) -> pb.ExplanationEvent:
        return pb.ExplanationEvent(mask=_mask(event))

    def _sufficient_set(self, event: events.SufficientSet, _: int) -> pb.ExplanationEvent:
        certificate = pb.Certificate(
            level=_LEVELS[event.certificate.level],
            checked=event.certificate.checked,
            required_score=event.certificate.required_score,
            model_digest=self._digest,
        )
        found = pb.SufficientSet(
            patches=pb.PatchSet(grid=event.grid, patches=event.patches),
            score=event.score,
            certificate=certificate,
            causal=self._causal(event.causal),
            evaluations=event.evaluations,
            diverse=event.diverse,
            top=self._class(event.top) if event.top else None,
        )
        return pb.ExplanationEvent(sufficient_set=found)

    def _node(self, event: events.GraphNode, _: int) -> pb.ExplanationEvent:
        node = pb.GraphNode(
            id=node_id(event.patches),
            patches=pb.PatchSet(grid=event.grid, patches=event.patches),
            score=event.score,
            relative_score=event.relative_score,
            root=event.root,
            causal=self._causal(event.causal),
            top=self._class(event.top) if event.top else None,
        )
        return pb.ExplanationEvent(graph_node=node)

    @staticmethod
    def _edge(event: events.GraphEdge, _: int) -> pb.ExplanationEvent:
        edge = pb.GraphEdge(parent=node_id(event.parent), child=node_id(event.child), removed_patch=event.removed)
        return pb.ExplanationEvent(graph_edge=edge)

    def _regions(self, event: events.RegionScores, _: int) -> pb.ExplanationEvent:
        top = [self._class(found) for found in event.top]
        scores = pb.RegionScores(full=self._class(event.full), scores=event.scores, top=top)
        return pb.ExplanationEvent(region_scores=scores)

    def _causal(self, triple: events.CausalTriple | None) -> pb.CausalTriple | None:
        if triple is None:
            return None
        return pb.CausalTriple(
            sufficiency=triple.sufficiency, without=triple.without, top_without=self._class(triple.top_without)
        )

    @staticmethod
    def _curve(event: events.Curve, _: int) -> pb.ExplanationEvent:
        curve = pb.Curve(
            kind=_CURVES[event.kind],
            fractions=event.fractions,
            scores=event.scores,
            auc=event.auc,
            auc_normalized=event.auc_normalized,
            mask_index=event.mask_index,
        )
        return pb.ExplanationEvent(curve=curve)

    def _concept_prediction(self, event: events.ConceptPrediction, _: int) -> pb.ExplanationEvent:
        prediction = pb.ConceptPrediction(
            target=self._class(events.ClassScore(event.target, 0.0)),
            predicted=event.predicted,
            output=event.output,
            gap=event.predicted - event.output,
            usual_error=event.usual_error,
        )
        return pb.ExplanationEvent(concept_prediction=prediction)

    @staticmethod
    def _concept(event: events.ConceptContribution, _: int) -> pb.ExplanationEvent:
        concept = pb.ConceptContribution(
            index=event.index,
            name=event.name,
            value=event.value,
            contribution=event.contribution,
            heatmap=_mask(events.SaliencyMask(event.heatmap)),
        )
        return pb.ExplanationEvent(concept=concept)

    @staticmethod
    def _notice(event: events.Notice, _: int) -> pb.ExplanationEvent:
        return pb.ExplanationEvent(warning=pb.Warning(reason=event.reason, message=event.message))


def node_id(patches: Sequence[int]) -> str:
    """Returns the identifier of a patch set: its bit set in hexadecimal."""
    return f"{sum(1 << patch for patch in patches):x}"


def _mask(event: events.SaliencyMask) -> pb.Mask:
    return pb.Mask(saliency=_half(event.saliency), final=event.final, index=event.index, signed=event.signed)


def _half(values: Tensor) -> tensor_pb2.Tensor:
    return tensor_of(values.detach().float().cpu().numpy(), tensor_pb2.DATA_TYPE_FLOAT16)
