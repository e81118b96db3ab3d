"""Concept sets (XNN): what a model looks for, in a few concepts that predict what it predicts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sagittal.client.arrays import to_array
from sagittal.client.images import ImageLike, encode_image
from sagittal.v1 import concept_pb2 as pb
from sagittal.v1 import concept_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2


@dataclass(frozen=True, slots=True)
class ConceptExample:
    """An image that excites a concept."""

    picture: bytes
    """A small JPEG."""
    value: float
    heatmap: NDArray[np.float32] | None
    """Where the concept looks, 0 to 1; None where that could not be found."""
    group: int
    """Which group of images it belongs to; 0 unless the concept is mixed."""
    index: int
    """Its place in the set of images."""
    name: str
    """Its file; empty for images that were sent."""


@dataclass(frozen=True, slots=True)
class XFeature:
    """A concept of a set."""

    index: int
    name: str
    mean_contribution: float
    contribution_spread: float
    agreement: float
    """How alike the images that excite it are in the model's feature space, -1 to 1."""
    mixed: bool
    """Whether it seems to stand for several unrelated things ("A or B")."""
    merged_into: int | None
    weights: tuple[float, ...]
    """What one unit of it adds to the output of each target."""
    examples: tuple[ConceptExample, ...]


@dataclass(frozen=True, slots=True)
class ConceptQuality:
    """How good a set is, on images that were held out of the fit."""

    faithfulness_correlation: float
    faithfulness_error: float
    class_agreement: float | None
    orthogonality: float
    reconstructed_share: float
    stability: float | None
    held_out: int


@dataclass(frozen=True, slots=True)
class ConceptSet:
    """A fitted explanation network (XNN) of one model and layer."""

    name: str
    model: str
    model_version: str
    model_digest: str
    layer: str
    targets: tuple[int, ...]
    target_labels: tuple[str, ...]
    concepts: tuple[XFeature, ...]
    quality: ConceptQuality
    warnings: tuple[tuple[str, str], ...]
    """Reason and message of each."""
    images: int
    skipped: tuple[tuple[int, str, str], ...]
    """Images that could not be read, the first hundred: place in the set, file, reason."""
    skipped_count: int
    created: datetime


@dataclass(frozen=True, slots=True)
class FitProgress:
    """How a fit goes."""

    job_id: str
    phase: str
    """"features", "fit", "refit-1" and so on, "examples"; "queued" and "started" before."""
    fraction: float
    epoch: int
    """0 where no loss is told."""
    faithfulness: float
    reconstruction: float
    pull_away: float


class FitOptions(TypedDict, total=False):
    """What may be said of a fit; what is left out takes the service's default."""

    layer: str
    concepts: int
    beta: float
    q: float
    eta: float
    epochs: int
    hidden: int
    views: int
    seeds: int
    seed: int
    replace: bool
    detach: bool
    dataset: str
    model_version: str


OnProgress = Callable[[FitProgress], None]

_SETTINGS = ("layer", "replace", "detach", "dataset", "model_version")


def fit_requests(
    images: Iterable[ImageLike], name: str, model: str, targets: Sequence[int | str], options: FitOptions
) -> Iterator[service_pb.FitConceptsRequest]:
    """Yields the messages of a fit: the settings, then the images as they are taken."""
    fit = {key: value for key, value in options.items() if key not in _SETTINGS}
    settings = service_pb.FitConceptsSettings(
        name=name,
        model=model,
        targets=[_target(target) for target in targets],
        fit=pb.ConceptFit(**fit),  # type: ignore[arg-type]
        **{key: options[key] for key in _SETTINGS if key in options},  # type: ignore[literal-required]
    )
    yield service_pb.FitConceptsRequest(settings=settings)
    for number, image in enumerate(images):
        yield service_pb.FitConceptsRequest(image=encode_image(image, field=f"image {number}"))


def changes(
    *, rename: dict[int, str] | None = None, merge: dict[int, int] | None = None, mixed: dict[int, bool] | None = None
) -> Sequence[service_pb.ConceptChange]:
    """Returns changes to x-features by index: names, what each is shown together with, whether it is mixed."""
    made = [service_pb.ConceptChange(index=index, rename=name) for index, name in (rename or {}).items()]
    made += [service_pb.ConceptChange(index=index, merge_into=head) for index, head in (merge or {}).items()]
    made += [service_pb.ConceptChange(index=index, mixed=flag) for index, flag in (mixed or {}).items()]
    return made


def parse_progress(response: service_pb.FitConceptsResponse) -> FitProgress | None:
    """Returns what an answer says of the progress; None where it says nothing."""
    event = response.job
    match event.WhichOneof("event"):
        case "accepted":
            return FitProgress(event.job_id, "queued", 0.0, 0, 0.0, 0.0, 0.0)
        case "started":
            return FitProgress(event.job_id, "started", 0.0, 0, 0.0, 0.0, 0.0)
        case "progress":
            said = event.progress
            terms = [float(said.terms.get(name, 0.0)) for name in ("faithfulness", "reconstruction", "pull_away")]
            epoch = int(said.terms.get("epoch", 0))
            return FitProgress(event.job_id, said.phase, said.fraction, epoch, *terms)
    return None


def parse_concept_set(message: pb.ConceptSet) -> ConceptSet:
    """Returns a set."""
    metrics = message.metrics
    return ConceptSet(
        name=message.name,
        model=message.model,
        model_version=message.model_version,
        model_digest=message.model_digest,
        layer=message.layer,
        targets=tuple(target.index for target in message.targets),
        target_labels=tuple(message.target_labels),
        concepts=tuple(map(_x_feature, message.concepts)),
        quality=ConceptQuality(
            faithfulness_correlation=metrics.faithfulness_correlation,
            faithfulness_error=metrics.faithfulness_error,
            class_agreement=metrics.class_agreement if metrics.HasField("class_agreement") else None,
            orthogonality=metrics.orthogonality,
            reconstructed_share=metrics.reconstructed_share,
            stability=metrics.stability if metrics.HasField("stability") else None,
            held_out=metrics.held_out,
        ),
        warnings=tuple((warning.reason, warning.message) for warning in message.warnings),
        images=message.images,
        skipped=tuple((each.index, each.name, each.reason) for each in message.skipped_images),
        skipped_count=message.skipped,
        created=message.create_time.ToDatetime(UTC),
    )


def _x_feature(message: pb.Concept) -> XFeature:
    return XFeature(
        index=message.index,
        name=message.name,
        mean_contribution=message.mean_contribution,
        contribution_spread=message.contribution_spread,
        agreement=message.agreement,
        mixed=message.mixed,
        merged_into=message.merged_into if message.HasField("merged_into") else None,
        weights=tuple(message.weights),
        examples=tuple(map(_example, message.examples)),
    )


def _example(message: pb.ConceptExample) -> ConceptExample:
    return ConceptExample(
        picture=message.image.encoded,
        value=message.value,
        heatmap=to_array(message.heatmap.saliency) if message.HasField("heatmap") else None,
        group=message.group,
        index=message.index,
        name=message.name,
    )


def _target(target: int | str) -> explanation_pb2.Target:
    if isinstance(target, int):
        return explanation_pb2.Target(index=target)
    return explanation_pb2.Target(label=target)
