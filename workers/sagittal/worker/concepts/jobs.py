"""Jobs on concept sets: fits, and explanations by stored sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.images import ImageLimits
from sagittal.core.jobs import Lease
from sagittal.core.text import shown
from sagittal.explain import InvalidParameter
from sagittal.explain.concepts import Concepts, FitQuestion, FitSettings, fit_concepts
from sagittal.explain.events import Warning
from sagittal.explain.problem import Question
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import concept_pb2, concept_service_pb2
from sagittal.worker.concepts.description import describe_fit, fitted_concepts
from sagittal.worker.concepts.images import (
    ReadImages,
    annotations_of,
    digest_of,
    file_message,
    files_of,
    no_annotations,
    sent_annotations,
)
from sagittal.worker.concepts.store import ConceptSettings, ConceptStore
from sagittal.worker.execution.checkpoints import unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptShelf:
    """A worker's resources for concepts: the store, its datasets, and the images attached to jobs."""

    store: ConceptStore
    settings: ConceptSettings = field(default_factory=ConceptSettings)
    attachment: Callable[[str, str], bytes | None] = lambda _job, _name: None
    """Returns a part of a job by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Images:
    images: ReadImages
    names: Sequence[str]
    """Files by index in the set; empty for uploaded images."""


def fit_steps(lease: Lease, loaded: LoadedModel, limits: ImageLimits, shelf: ConceptShelf) -> Steps[None]:
    """Returns the steps of a fit. Raises an error if the fit is impossible, or its result could not be stored."""
    request = concept_service_pb2.FitConceptsSettings.FromString(lease.request)
    shelf.store.check_free(lease, request.model, request.name, replace=request.replace)
    chosen = _images(request, lease, loaded, limits, shelf)
    settings = fit_settings(request.fit)
    # The registered layer of features is flat, and independent components require positions.
    registered = loaded.entry.layers.features if settings.method == "srae" else ""
    question = FitQuestion(
        images=chosen.images,
        targets=tuple(target.index for target in request.targets),
        settings=settings,
        layer=request.layer or registered,
        size=loaded.entry.preprocessing.input_size,
        rows=loaded.found.batch_size,
        cache=shelf.store.features(
            f"{lease.job.tenant} {loaded.digest}",
            max_bytes=shelf.settings.max_feature_bytes,
            device=loaded.device,
        ),
        restored=unpack(lease, loaded).state,
    )
    return _fit(question, chosen, request, lease, loaded, shelf.store)


def _fit(
    question: FitQuestion,
    chosen: _Images,
    request: concept_service_pb2.FitConceptsSettings,
    lease: Lease,
    loaded: LoadedModel,
    store: ConceptStore,
) -> Steps[None]:
    try:
        fit = yield from fit_concepts(question)
    except InvalidParameter as error:
        raise InvalidRequest(f"settings.{error.name}: {error.message}", field=f"settings.{error.name}") from error
    finally:
        chosen.images.close()
    described = describe_fit(fit, request, question.settings, loaded, chosen.names)
    for warning in described.warnings:
        yield Warning(warning.reason, warning.message)
    store.save(lease, described, fit.fitted.srae, replace=request.replace)


def fit_settings(asked: concept_pb2.ConceptFit) -> FitSettings:
    """Returns the requested settings. Raises InvalidRequest for a value out of bounds."""
    whole = {name: getattr(asked, name) for name in ("concepts", "epochs", "hidden", "views", "seeds", "method")}
    given: dict[str, float | str] = {name: value for name, value in whole.items() if value}
    given |= {name: getattr(asked, name) for name in ("beta", "q", "eta") if asked.HasField(name)}
    try:
        return FitSettings(**given, seed=asked.seed)  # type: ignore[arg-type]
    except InvalidParameter as error:
        path = f"settings.fit.{error.name}"
        raise InvalidRequest(f"{path} {error.message}", field=path) from error


def _images(
    request: concept_service_pb2.FitConceptsSettings,
    lease: Lease,
    loaded: LoadedModel,
    limits: ImageLimits,
    shelf: ConceptShelf,
) -> _Images:
    if not request.dataset:
        job_id = lease.job.job_id

        def sent(index: int) -> bytes:
            part = shelf.attachment(job_id, str(index))
            if part is None:
                raise FailedPrecondition("the images of this fit are no longer kept: send them again", field="image")
            return part

        annotations = sent_annotations(shelf.attachment, job_id) if request.annotations_digest else no_annotations
        images = ReadImages(sent, request.image_count, request.images_digest, loaded, limits, annotations)
        return _Images(images=images, names=())
    directory = shelf.settings.datasets.get(request.dataset)
    if directory is None:
        known = ", ".join(sorted(shelf.settings.datasets)) or "none"
        text = f"settings.dataset is {shown(request.dataset)}; this worker has {known}"
        raise InvalidRequest(text, field="settings.dataset")
    return _dataset(directory, loaded, limits)


def _dataset(directory: Path, loaded: LoadedModel, limits: ImageLimits) -> _Images:
    files = files_of(directory)
    names = [path.relative_to(directory).as_posix() for path in files]
    images = ReadImages(
        lambda index: file_message(files[index]),
        len(files),
        digest_of(files, directory),
        loaded,
        limits,
        annotations_of(directory, names),
    )
    return _Images(images=images, names=names)


def with_concepts(
    explainer: Concepts, question: Question, lease: Lease, loaded: LoadedModel, shelf: ConceptShelf
) -> tuple[Concepts, Question]:
    """Returns an explainer with its set, and the question with its target, by default the set's only one.

    Raises:
        NotFound, FailedPrecondition: there is no such set, or it belongs to another model.
        InvalidRequest: the set does not predict the class.
    """
    name = explainer.concept_set
    if not name:
        path = "spec.method.concepts.concept_set"
        raise InvalidRequest(f"{path} is not set; give the name of a set that was fitted to this model", field=path)
    described, srae = shelf.store.load(lease.job.tenant, lease.job.model, name, loaded.digest)
    fitted = fitted_concepts(described, srae.to(loaded.device))
    if question.target is None and len(fitted.targets) == 1:
        question = replace(question, target=fitted.targets[0])
    if question.target is not None and question.target not in fitted.targets:
        known = ", ".join(map(str, fitted.targets))
        text = f"spec.target is {question.target}; the concept set {name!r} predicts {known}"
        raise InvalidRequest(text, field="spec.target")
    return replace(explainer, fitted=fitted), question
