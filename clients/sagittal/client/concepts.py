"""Concept sets (XNN): what a model looks for, in a few concepts that predict what it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from sagittal.client.events import From
from sagittal.client.parsing import parse
from sagittal.v1 import concept_pb2 as pb
from sagittal.v1 import concept_service_pb2 as service_pb

Names = dict[int, str]
"""Names of x-features by index."""

#: Sets on a page.
PAGE = 100


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
    parts: tuple[tuple[str, float], ...]
    """How its heatmaps spread over annotated parts, the largest share first; empty without annotations."""
    locality: float | None
    """Entropy of these shares in nats; None without annotations."""


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
    locality: float | None
    """Mean over x-features of the entropy of their heatmaps over annotated parts, in nats; None without annotations."""
    parts_covered: float | None
    """Mean number of parts that an x-feature covers; None without annotations."""
    annotated: int
    """Held-out images whose annotations were used."""


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
    """Images that could not be read, the first hundred: place in the set, file, reason."""
    skipped_count: Annotated[int, From("skipped")]
    created: Annotated[datetime, From("create_time")]


def page_request(model: str, token: str) -> service_pb.ListConceptSetsRequest:
    """Returns the request of a page of sets."""
    return service_pb.ListConceptSetsRequest(model=model, page_size=PAGE, page_token=token)


def update_request(
    name: str, model: str, rename: Names | None, merge: dict[int, int] | None, mixed: dict[int, bool] | None
) -> service_pb.UpdateConceptSetRequest:
    """Returns the request that names, merges and marks x-features by index."""
    made = changes(rename=rename, merge=merge, mixed=mixed)
    return service_pb.UpdateConceptSetRequest(model=model, name=name, changes=made)


def changes(
    *, rename: Names | None = None, merge: dict[int, int] | None = None, mixed: dict[int, bool] | None = None
) -> Sequence[service_pb.ConceptChange]:
    """Returns changes to x-features by index: names, what each is shown together with, whether it is mixed."""
    made = [service_pb.ConceptChange(index=index, rename=name) for index, name in (rename or {}).items()]
    made += [service_pb.ConceptChange(index=index, merge_into=head) for index, head in (merge or {}).items()]
    made += [service_pb.ConceptChange(index=index, mixed=flag) for index, flag in (mixed or {}).items()]
    return made


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
