"""Concept sets (XNN): a few concepts of a model that together predict its outputs."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypedDict

import grpc
import numpy as np
from numpy.typing import NDArray

from sagittal.client.errors import InvalidRequest, Unavailable, from_rpc_error
from sagittal.client.events import From
from sagittal.client.gathering import terminal_error
from sagittal.client.images import ACCEPTED, ImageLike, UnreadableImage, encode_image
from sagittal.client.parsing import parse
from sagittal.client.requests import (
    build,
    build_durations,
    build_target,
    check_kind,
    check_listener,
    check_names,
    check_several,
    model_alone,
    split_model,
)
from sagittal.client.resume import Cursor
from sagittal.v1 import concept_pb2 as pb
from sagittal.v1 import concept_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2, tensor_pb2
from sagittal.v1 import explanation_service_pb2 as jobs_pb

Names = dict[int, str]
"""Names of x-features by index."""

#: Sets per page.
PAGE = 100


@dataclass(frozen=True, slots=True)
class ConceptExample:
    """An image that excites a concept."""

    picture: bytes
    """A small JPEG."""
    value: float
    heatmap: NDArray[np.float32] | None
    """Heatmap of the concept, 0 to 1; None if there is none."""
    group: int
    """Group of the image; 0 unless the concept is mixed."""
    index: int
    """Its index in the set of images."""
    name: str
    """Its file; empty for uploaded images."""


@dataclass(frozen=True, slots=True)
class XFeature:
    """A concept of a set."""

    index: int
    name: str
    mean_contribution: float
    contribution_spread: float
    agreement: float
    """Similarity of the images that excite it in the model's feature space, -1 to 1."""
    mixed: bool
    """Whether it appears to mix several unrelated concepts ("A or B")."""
    merged_into: int | None
    weights: tuple[float, ...]
    """Contribution of one unit of it to the output of each target."""
    examples: tuple[ConceptExample, ...]
    parts: tuple[tuple[str, float], ...]
    """Shares of its heatmaps by annotated part, the largest first; empty without annotations."""
    locality: float | None
    """Entropy of these shares in nats; None without annotations."""


@dataclass(frozen=True, slots=True)
class ConceptQuality:
    """Quality of a set, on images that were held out of the fit."""

    faithfulness_correlation: float
    faithfulness_error: float
    class_agreement: float | None
    orthogonality: float
    reconstructed_share: float
    stability: float | None
    held_out: int
    locality: float | None
    """Mean over x-features of the entropy of their heatmaps over annotated parts, in nats; None without annotations."""
    parts_covered: float | None
    """Mean number of parts that an x-feature covers; None without annotations."""
    annotated: int
    """Number of held-out images whose annotations were used."""


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
    quality: Annotated[ConceptQuality, From("metrics")]
    warnings: tuple[tuple[str, str], ...]
    """Reason and message of each."""
    images: int
    skipped: tuple[tuple[int, str, str], ...]
    """Unreadable images, the first hundred: index in the set, file, reason."""
    skipped_count: Annotated[int, From("skipped")]
    created: Annotated[datetime, From("create_time")]


def page_request(model: str, token: str) -> service_pb.ListConceptSetsRequest:
    """Returns the request for a page of sets."""
    return build(service_pb.ListConceptSetsRequest, model=model_alone(model), page_size=PAGE, page_token=token)


def named_set(name: str, model: str) -> Mapping[str, str]:
    """Returns the fields of a request about a set."""
    return {"name": check_kind(name, str, "name", "the name of a concept set"), "model": model_alone(model)}


def update_request(
    name: str, model: str, rename: Names | None, merge: dict[int, int] | None, mixed: dict[int, bool] | None
) -> service_pb.UpdateConceptSetRequest:
    """Returns the request that names, merges and marks x-features by index."""
    made = changes(rename=rename, merge=merge, mixed=mixed)
    return build(service_pb.UpdateConceptSetRequest, **named_set(name, model), changes=made)


def changes(
    *, rename: Names | None = None, merge: dict[int, int] | None = None, mixed: dict[int, bool] | None = None
) -> Sequence[service_pb.ConceptChange]:
    """Returns changes to x-features by index: names, the x-features they are shown with, whether they are mixed."""
    given = (("rename", "rename", rename), ("merge", "merge_into", merge), ("mixed", "mixed", mixed))
    return [
        build(service_pb.ConceptChange, option, **{"index": index, field: value})
        for option, field, values in given
        if values is not None
        for index, value in check_kind(values, dict, option, "a value for each x-feature by its index").items()
    ]


def parse_concept_set(message: pb.ConceptSet) -> ConceptSet:
    """Returns a set."""
    return parse(
        ConceptSet,
        message,
        targets=tuple(target.index for target in message.targets),
        concepts=tuple(map(_x_feature, message.concepts)),
        warnings=tuple((warning.reason, warning.message) for warning in message.warnings),
        skipped=tuple((each.index, each.name, each.reason) for each in message.skipped_images),
    )


def _x_feature(message: pb.Concept) -> XFeature:
    return parse(
        XFeature,
        message,
        examples=tuple(parse(ConceptExample, each, picture=each.image.encoded) for each in message.examples),
        parts=tuple((each.name, each.share) for each in message.parts),
    )


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Progress of a fit."""

    job_id: str
    phase: str
    """"queued", "started", then "features", "fit", "refit-1" and so on, "examples"."""
    fraction: float
    epoch: int
    """0 if no loss is reported."""
    faithfulness: float
    reconstruction: float
    pull_away: float


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part, relative to the size of its image: 0 to 1."""


class FitOptions(TypedDict, total=False):
    """Options of a fit; omitted options have the service's defaults."""

    layer: str
    concepts: int
    beta: float
    q: float
    eta: float
    epochs: int
    hidden: int
    views: int
    seeds: int
    method: str
    """"srae", the loss of the paper, or "components"."""
    seed: int
    replace: bool
    detach: bool
    dataset: str
    model_version: str
    deadline: float
    """Time from acceptance to the end, in seconds."""
    request_id: str
    """Idempotency key: the same request with the same key returns the same job. Generated if omitted."""
    parts: Sequence[Mapping[str, Box]]
    """Annotated parts of each image by name, in the order of the images; an empty mapping for images without."""


OnProgress = Callable[[FitProgress], None]

_SETTINGS = ("layer", "replace", "detach", "dataset")
_BESIDE = (*_SETTINGS, "model_version", "deadline", "request_id", "parts")


class Fitting:
    """A requested fit.

    The events of a fit are those of a job. If the call breaks after the job is known, `WatchExplanation` continues it.
    Before that, the request is sent again with the same `request_id`, which returns the same job, provided that its
    images can be read a second time.
    """

    def __init__(
        self,
        images: Iterable[ImageLike],
        *,
        name: str,
        model: str,
        targets: Sequence[int | str],
        options: FitOptions,
        on_progress: OnProgress | None,
    ) -> None:
        check_names(options, FitOptions.__optional_keys__)
        check_listener(on_progress, "on_progress")
        check_several(images, "images", f"each {ACCEPTED}")
        self.settings = _settings(name, model, targets, options)
        self.fault: Exception | None = None
        """Error that occurred while the images were read."""
        self._images = images
        self._parts = options.get("parts")
        self._on_progress = on_progress

    def requests(self) -> Iterator[service_pb.FitConceptsRequest]:
        """Yields the messages of a call: the settings, then the images as they are read."""
        yield service_pb.FitConceptsRequest(settings=self.settings)
        try:
            yield from self._pictures()
        except Exception as error:  # noqa: BLE001 - image sources may raise anything; raised again where the call is read
            self.fault = error
            # Ending the requests would start the fit; an empty message is refused.
            yield service_pb.FitConceptsRequest()

    def owns_job(self, cursor: Cursor) -> bool:
        """Returns whether the job must end with its caller."""
        return bool(cursor.job_id) and not cursor.ended and not self.settings.detach

    def take(self, cursor: Cursor, response: service_pb.FitConceptsResponse | jobs_pb.WatchExplanationResponse) -> None:
        """Calls `on_progress` with the event of a response; raises the error that ends the fit."""
        event = response.event if isinstance(response, jobs_pb.WatchExplanationResponse) else response.job
        if not cursor.admit(event):
            return
        failure = terminal_error(event)
        if failure is not None:
            raise failure
        progress = parse_progress(event)
        if progress is not None and self._on_progress is not None:
            self._on_progress(progress)

    def check_repeatable(self, cursor: Cursor, error: grpc.RpcError | Unavailable) -> None:
        """Raises the error that ended a call if the fit cannot be resumed."""
        if self.fault is not None:
            raise self.fault
        if isinstance(error, grpc.RpcError) and not cursor.job_id and isinstance(self._images, Iterator):
            raise from_rpc_error(error, address=cursor.address) from error

    def _pictures(self) -> Iterator[service_pb.FitConceptsRequest]:
        count = 0
        for number, image in enumerate(self._images):
            count += 1
            try:
                encoded = encode_image(image, field=f"image {number}")
            except UnreadableImage:
                encoded = tensor_pb2.Image(encoded=b"")  # so that the set lists it as skipped, at its index
            yield service_pb.FitConceptsRequest(image=encoded, annotated_parts=self._annotated(number))
        if self._parts is not None and len(self._parts) != count:
            raise InvalidRequest(
                f"got parts of {len(self._parts)} images for {count} images; give one per image", field="parts"
            )

    def _annotated(self, number: int) -> Sequence[service_pb.AnnotatedPart]:
        if self._parts is None or number >= len(self._parts):
            return ()
        return [
            service_pb.AnnotatedPart(name=name, left=left, top=top, right=right, bottom=bottom)
            for name, (left, top, right, bottom) in self._parts[number].items()
        ]


def _settings(
    name: str, model: str, targets: Sequence[int | str], options: FitOptions
) -> service_pb.FitConceptsSettings:
    given: Mapping[str, Any] = options
    model, version = split_model(model, options.get("model_version", ""))
    settings = build(
        service_pb.FitConceptsSettings,
        "settings",
        name=name,
        model=model,
        model_version=version,
        targets=[
            build_target(target, f"settings.targets[{number}]")
            for number, target in enumerate(check_several(targets, "settings.targets", "classes by index or label"))
        ],
        fit=build(pb.ConceptFit, "settings.fit", **{key: value for key, value in given.items() if key not in _BESIDE}),
        request_id=options.get("request_id") or f"client-{uuid.uuid4().hex}",
        **{key: given[key] for key in _SETTINGS if key in given},
    )
    build_durations(settings, "settings", {"deadline": options.get("deadline")})
    return settings


def parse_progress(event: explanation_pb2.ExplanationEvent) -> FitProgress | None:
    """Returns the progress that an event reports; None for other events."""
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
