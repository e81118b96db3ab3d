"""Jobs about concept sets: fitting one, and reading, changing or deleting those that are stored."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf import any_pb2
from google.protobuf.message import Message

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.images import ImageLimits
from sagittal.core.jobs import JobKind, Lease
from sagittal.core.text import shown
from sagittal.explain import InvalidParameter
from sagittal.explain.concepts import Concepts, FitQuestion, FitSettings, fit_concepts
from sagittal.explain.events import Warning
from sagittal.explain.problem import Question
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel
from sagittal.registry.concept_changes import apply_changes
from sagittal.v1 import concept_pb2, concept_service_pb2, explanation_pb2
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
from sagittal.worker.concepts.store import ConceptSettings, ConceptStore, StoredFeatures
from sagittal.worker.execution.checkpoints import unpack

#: Sets on a page where the request does not say, and most.
DEFAULT_PAGE, MAX_PAGE = 50, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptShelf:
    """What a worker has for concepts: the store, its datasets, and the images that were attached to jobs."""

    settings: ConceptSettings = field(default_factory=ConceptSettings)
    attachment: Callable[[str, str], bytes | None] = lambda _job, _name: None
    """Returns a part of a job by name."""

    @property
    def store(self) -> ConceptStore:
        """The store of concept sets."""
        return ConceptStore(self.settings.directory)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An event that is the answer to a question."""

    message: any_pb2.Any


Answered = Generator[Answer, None, None]
"""Steps of a job that needs no device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Images:
    images: ReadImages
    names: Sequence[str]
    """Files by their place in the set; empty for images that were sent."""


def fit_steps(lease: Lease, loaded: LoadedModel, limits: ImageLimits, shelf: ConceptShelf) -> Steps[None]:
    """Returns the steps of a fit. Raises where it could not be carried out, or its result not be stored."""
    request = concept_service_pb2.FitConceptsSettings.FromString(lease.request)
    tenant = lease.job.tenant
    shelf.store.check_free(tenant, request.model, request.name, replace=request.replace)
    chosen = _images(request, lease, loaded, limits, shelf)
    question = FitQuestion(
        images=chosen.images,
        targets=tuple(target.index for target in request.targets),
        settings=fit_settings(request.fit),
        layer=request.layer or loaded.entry.layers.features,
        size=loaded.entry.preprocessing.input_size,
        rows=loaded.found.batch_size,
        cache=StoredFeatures(
            shelf.store.features,
            f"{tenant} {loaded.digest}",
            max_bytes=shelf.settings.max_feature_bytes,
            device=loaded.device,
        ),
        restored=unpack(lease, loaded).state,
    )
    return _fit(question, chosen, request, tenant, loaded, shelf.store)


def _fit(
    question: FitQuestion,
    chosen: _Images,
    request: concept_service_pb2.FitConceptsSettings,
    tenant: str,
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
    store.check_free(tenant, request.model, request.name, replace=request.replace)
    store.save(tenant, described, fit.fitted.srae)


def fit_settings(asked: concept_pb2.ConceptFit) -> FitSettings:
    """Returns the settings that are meant. Raises InvalidRequest for one that is out of its bounds."""
    whole = {name: getattr(asked, name) for name in ("concepts", "epochs", "hidden", "views", "seeds")}
    given: dict[str, float] = {name: value for name, value in whole.items() if value}
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
    """Returns an explainer with its set, and the question with its target: the set's only one where none is asked for.

    Raises:
        NotFound, FailedPrecondition: there is no such set, or it is of another model.
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


def list_sets(lease: Lease, shelf: ConceptShelf) -> Answered:
    """Answers with a page of the tenant's sets."""
    request = concept_service_pb2.ListConceptSetsRequest.FromString(lease.request)
    found = shelf.store.list(lease.job.tenant, request.model)
    rest = [each for each in found if f"{each.model}/{each.name}" > request.page_token]
    page = rest[: request.page_size or DEFAULT_PAGE]
    token = f"{page[-1].model}/{page[-1].name}" if len(rest) > len(page) else ""
    return _answer(concept_service_pb2.ListConceptSetsResponse(concept_sets=page, next_page_token=token))


def get_set(lease: Lease, shelf: ConceptShelf) -> Answered:
    """Answers with a set."""
    request = concept_service_pb2.GetConceptSetRequest.FromString(lease.request)
    return _answer(shelf.store.describe(lease.job.tenant, request.model, request.name))


def update_set(lease: Lease, shelf: ConceptShelf) -> Answered:
    """Changes a set, all or nothing, and answers with it."""
    request = concept_service_pb2.UpdateConceptSetRequest.FromString(lease.request)
    tenant, store = lease.job.tenant, shelf.store
    with store.locked(tenant, request.model):
        described = store.describe(tenant, request.model, request.name)
        apply_changes(described, request.changes)
        store.change(tenant, request.model, request.name, described)
    return _answer(described)


def delete_set(lease: Lease, shelf: ConceptShelf) -> Answered:
    """Deletes a set."""
    request = concept_service_pb2.DeleteConceptSetRequest.FromString(lease.request)
    shelf.store.delete(lease.job.tenant, request.model, request.name)
    return _answer(concept_service_pb2.DeleteConceptSetResponse())


def _answer(message: Message) -> Answered:
    packed = any_pb2.Any()
    packed.Pack(message)

    def steps() -> Answered:
        yield Answer(packed)

    return steps()


ANSWERS: Mapping[JobKind, Callable[[Lease, ConceptShelf], Answered]] = {
    JobKind.CONCEPT_SETS: list_sets,
    JobKind.CONCEPT_SET: get_set,
    JobKind.CONCEPT_UPDATE: update_set,
    JobKind.CONCEPT_DELETION: delete_set,
}
"""Questions about stored sets, by kind of job."""


def answer_event(answer: Answer) -> explanation_pb2.ExplanationEvent:
    """Returns the message of an answer."""
    return explanation_pb2.ExplanationEvent(answer=answer.message)
