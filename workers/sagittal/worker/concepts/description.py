"""Converts a fit to the API's description and back; the message is stored beside the weights."""

import io
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from PIL import Image
from torch import Tensor

from sagittal.core.models import Preprocessing
from sagittal.core.tensors import tensor_of
from sagittal.explain.concepts import SRAE, ConceptFit, FitSettings, FittedConcepts, Shown, entropy
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import concept_pb2, concept_service_pb2, explanation_pb2, tensor_pb2

#: Side of the stored images in pixels, and their JPEG quality.
SIDE, QUALITY = 160, 85

#: Maximum number of unreadable images that are listed.
LISTED = 100


def describe_fit(
    fit: ConceptFit,
    request: concept_service_pb2.FitConceptsSettings,
    settings: FitSettings,
    loaded: LoadedModel,
    names: Sequence[str],
) -> concept_pb2.ConceptSet:
    """Returns the description of a fit.

    Args:
        fit: The fit.
        request: The request of the fit.
        settings: Its settings, with defaults filled in.
        loaded: The model.
        names: Files of the images by their index in the set; empty for uploaded images.
    """
    weights = fit.fitted.srae.weights()
    described = concept_pb2.ConceptSet(
        name=request.name,
        model=request.model,
        model_version=loaded.entry.version,
        model_digest=loaded.digest,
        layer=fit.fitted.layer,
        targets=[explanation_pb2.Target(index=index) for index in fit.fitted.targets],
        target_labels=[_label(index, loaded.labels) for index in fit.fitted.targets],
        concepts=[
            _concept(index, fit, weights[index], loaded.entry.preprocessing, names)
            for index in range(len(fit.x_features))
        ],
        metrics=_metrics(fit),
        warnings=_warnings(fit, names),
        images=fit.images,
        skipped=len(fit.skipped),
        skipped_images=[
            concept_pb2.SkippedImage(index=read.index, name=_name(names, read.index), reason=read.fault)
            for read in fit.skipped[:LISTED]
        ],
        fit=concept_pb2.ConceptFit(**asdict(settings)),
    )
    described.create_time.GetCurrentTime()
    return described


def _warnings(fit: ConceptFit, names: Sequence[str]) -> Sequence[explanation_pb2.Warning]:
    said = [explanation_pb2.Warning(reason=one.reason, message=one.message) for one in fit.warnings]
    if fit.skipped:
        first = fit.skipped[0]
        message = (
            f"{len(fit.skipped)} images could not be read and were omitted; the first is image "
            f"{first.index} {_name(names, first.index)}: {first.fault}"
        )
        said.append(explanation_pb2.Warning(reason="IMAGES_SKIPPED", message=message))
    return said


def fitted_concepts(described: concept_pb2.ConceptSet, srae: SRAE) -> FittedConcepts:
    """Returns the parts of a stored set that an explanation needs."""
    concepts = described.concepts
    return FittedConcepts(
        layer=described.layer,
        targets=tuple(target.index for target in described.targets),
        srae=srae,
        error=described.metrics.faithfulness_error,
        spread=tuple(concept.spread for concept in concepts),
        names=tuple(concept.name for concept in concepts),
        merged_into=tuple(
            concept.merged_into if concept.HasField("merged_into") else concept.index for concept in concepts
        ),
    )


def _label(index: int, labels: Sequence[str]) -> str:
    return labels[index] if index < len(labels) else ""


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if names else ""


def _metrics(fit: ConceptFit) -> concept_pb2.ConceptMetrics:
    quality = fit.quality
    return concept_pb2.ConceptMetrics(
        faithfulness_correlation=quality.faithfulness_correlation,
        faithfulness_error=quality.faithfulness_error,
        orthogonality=quality.orthogonality,
        reconstructed_share=quality.reconstructed_share,
        held_out=quality.images,
        class_agreement=quality.class_agreement,
        stability=fit.stability,
        locality=fit.locality.mean_entropy,
        parts_covered=fit.locality.parts_covered,
        annotated=fit.locality.images,
    )


def _concept(
    index: int, fit: ConceptFit, weights: Tensor, preprocessing: Preprocessing, names: Sequence[str]
) -> concept_pb2.Concept:
    one = fit.x_features[index]
    shares = fit.locality.shares[index] if fit.locality.shares else {}
    return concept_pb2.Concept(
        index=index,
        mean_contribution=one.mean_contribution,
        contribution_spread=one.contribution_spread,
        mixed=one.mixed,
        agreement=one.agreement,
        weights=weights.tolist(),
        mean=one.mean,
        spread=one.spread,
        target=one.target,
        examples=[_example(shown, preprocessing, names) for shown in one.shown],
        parts=[concept_pb2.PartShare(name=name, share=share) for name, share in shares.items()],
        locality=entropy(shares) if shares else None,
    )


def _example(shown: Shown, preprocessing: Preprocessing, names: Sequence[str]) -> concept_pb2.ConceptExample:
    example = concept_pb2.ConceptExample(
        image=tensor_pb2.Image(encoded=_jpeg(shown.image, preprocessing)),
        value=shown.value,
        group=shown.group,
        index=shown.index,
        name=_name(names, shown.index),
    )
    if shown.heatmap is not None:
        saliency = tensor_of(shown.heatmap.detach().float().cpu().numpy(), tensor_pb2.DATA_TYPE_FLOAT16)
        example.heatmap.CopyFrom(explanation_pb2.Mask(saliency=saliency, final=True))
    return example


def _jpeg(image: Tensor, preprocessing: Preprocessing) -> bytes:
    """Returns an input of the model as a small JPEG."""
    values = image.detach().float().cpu().numpy().transpose(1, 2, 0)
    values = values * np.array(preprocessing.std) + np.array(preprocessing.mean)
    if preprocessing.channel_order == "BGR":
        values = values[..., ::-1]
    pixels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    shrunk = Image.fromarray(np.ascontiguousarray(pixels))
    shrunk.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    shrunk.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()
