"""ScoreRegions: scores of sets of patches, from a job's events if they contain them, otherwise from the model."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from sagittal.core.errors import FailedPrecondition, InvalidRequest, UnknownModel
from sagittal.core.images import check_image_set
from sagittal.core.jobs import Job, JobKind
from sagittal.core.methods import resolve
from sagittal.core.patch_sets import (
    Known,
    bits_of,
    check_patch_shape,
    check_sets,
    known_sets,
    region_score,
    unmasked_score,
)
from sagittal.core.requests import check_baseline
from sagittal.core.targets import resolve_target
from sagittal.queue.protocol import JobQueue
from sagittal.server.catalogue import Catalogue, check_loadable
from sagittal.server.images import Pictures
from sagittal.server.intake import Intake
from sagittal.server.relay import Relay, outcome, stored_events
from sagittal.server.rpc.access import Caller
from sagittal.v1 import explanation_pb2, explanation_service_pb2, method_pb2, model_pb2

#: Evaluations in addition to the sets: the unmasked image, and baselines until one hides the class.
_PREPARATION = 4

#: Images of a job that its regions are composed of.
SUBJECT_IMAGES = frozenset({"image", "baseline"})

#: Kinds of events that contain scores.
_SCORED = frozenset({"prediction", "sufficient_set", "graph_node"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """Image and model to which the sets belong."""

    about: explanation_service_pb2.RegionSubject
    """Checked subject, without images."""
    model: model_pb2.Model
    images: dict[str, bytes]
    unmasked: explanation_pb2.ClassScore | None = None
    known: Mapping[int, Known] = field(default_factory=dict)
    """Known scores of sets that are shown alone, by their bits."""


class Regions:
    """Serves ScoreRegions."""

    def __init__(self, queue: JobQueue, catalogue: Catalogue, pictures: Pictures, intake: Intake, relay: Relay) -> None:
        self._queue = queue
        self._catalogue = catalogue
        self._pictures = pictures
        self._intake = intake
        self._relay = relay

    async def score(
        self, request: explanation_service_pb2.ScoreRegionsRequest, caller: Caller, seconds: float
    ) -> explanation_service_pb2.ScoreRegionsResponse:
        """Returns the scores in the order of the sets; the model evaluates only those that are not known.

        Raises:
            InvalidRequest, UnknownModel, UnknownJob: the request is wrong.
            FailedPrecondition: the job is not an explanation, or its images are deleted.
            Expired: there was no answer in time.
        """
        with self._intake.counting_refusals():
            grid = check_sets(request.sets)
            subject = await self._subject(request, grid, caller)
            check_sets(request.sets, subject.model.preprocessing.input_size)
        flip = (1 << grid * grid) - 1 if request.hide else 0
        answers = [subject.known.get(bits_of(each) ^ flip) for each in request.sets]
        missing = [each for each, answer in zip(request.sets, answers, strict=True) if answer is None]
        _log.info("regions-asked", sets=len(request.sets), known=len(request.sets) - len(missing))
        if not missing and subject.unmasked is not None:
            return _response(answers, [], subject.unmasked)
        found = await self._evaluate(subject, missing, caller, seconds, hide=request.hide)
        return _response(answers, map(Known, found.scores, found.top), found.full)

    async def _subject(
        self, request: explanation_service_pb2.ScoreRegionsRequest, grid: int, caller: Caller
    ) -> _Subject:
        match request.WhichOneof("subject"):
            case "job_id":
                return await self._of_job(await self._relay.job(request.job_id, caller), grid)
            case "image":
                return await self._of_image(request.image, caller)
        raise InvalidRequest("subject is not set; give a job_id, or an image with its model", field="subject")

    async def _of_image(self, about: explanation_service_pb2.RegionSubject, caller: Caller) -> _Subject:
        """Checks a subject in a request and removes its images."""
        model = await self._catalogue.model(about.model, about.model_version, field="image.model")
        check_loadable(model, "image.model")
        check_image_set(about.image, "image.image")
        check_baseline(about.baseline, "image.baseline")
        check_patch_shape(about.patch_shape, "image.patch_shape")
        if about.HasField("target"):
            about.target.index = resolve_target(about.target, model, "image.target")
        pictures = {"image": ("image.image", about.image)}
        if about.baseline.HasField("image"):
            pictures["baseline"] = ("image.baseline.image", about.baseline.image)
        examined = await self._pictures.examine(pictures, model.preprocessing.input_size, None, caller.tenant)
        about.ClearField("image")
        about.baseline.ClearField("image")
        about.model_version = model.version
        return _Subject(about=about, model=model, images=examined.images)

    async def _of_job(self, job: Job, grid: int) -> _Subject:
        """Returns a job's subject, with the scores that its events contain for this grid."""
        if job.kind is not JobKind.EXPLANATION:
            text = f"job {job.job_id} is a {job.kind.value}, not an explanation: send the image"
            raise FailedPrecondition(text, field="job_id")
        stored = await self._queue.request_of(job.job_id)
        spec = explanation_pb2.ExplanationSpec.FromString(stored.request)
        model = await self._model_of(job)
        parameters = resolve(spec.method, model.methods, field="job_id").parameters
        shape = f"PATCH_SHAPE_{str(parameters.get('patch_shape', 'box')).upper()}"
        about = explanation_service_pb2.RegionSubject(
            model=job.model,
            model_version=job.version,
            target=spec.target if spec.HasField("target") else None,
            baseline=spec.baseline,
            seed=spec.seed,
            patch_shape=method_pb2.PatchShape.Value(shape),
        )
        images = {name: image for name, image in stored.images.items() if name in SUBJECT_IMAGES}
        if "patch_shape" not in parameters or parameters.get("grid") != grid:
            return _Subject(about=about, model=model, images=images)
        events = await self._scored_sets(job)
        unmasked = unmasked_score(events)
        known = known_sets(events, grid, model.digest) if unmasked else {}
        return _Subject(about=about, model=model, images=images, unmasked=unmasked, known=known)

    async def _scored_sets(self, job: Job) -> list[explanation_pb2.ExplanationEvent]:
        """Returns the events of a job that contain scores, without its masks, which are large."""
        async with aclosing(stored_events(self._queue, job)) as events:
            return [event async for event in events if event.WhichOneof("event") in _SCORED]

    async def _model_of(self, job: Job) -> model_pb2.Model:
        try:
            return await self._catalogue.model(job.model, job.version, field="job_id")
        except UnknownModel as gone:
            text = f"the model of job {job.job_id}, {job.model} {job.version}, is no longer registered"
            raise FailedPrecondition(text, field="job_id") from gone

    async def _evaluate(
        self,
        subject: _Subject,
        sets: Sequence[explanation_pb2.PatchSet],
        caller: Caller,
        seconds: float,
        *,
        hide: bool,
    ) -> explanation_pb2.RegionScores:
        """Submits a job that scores sets, and waits for it."""
        request = explanation_service_pb2.ScoreRegionsRequest(image=subject.about, sets=sets, hide=hide)
        with self._intake.counting_refusals():
            job = await self._intake.inquire(
                JobKind.REGIONS,
                subject.model,
                request.SerializeToString(),
                subject.images,
                caller,
                seconds,
                evaluations=len(sets) + _PREPARATION,
            )
        events = await outcome(self._relay, job, subject.model, rpc="ScoreRegions", seconds=seconds)
        return events["region_scores"].region_scores


def _response(
    answers: Sequence[Known | None], found: Iterable[Known], unmasked: explanation_pb2.ClassScore
) -> explanation_service_pb2.ScoreRegionsResponse:
    """Returns the scores in order; each missing one is taken from `found`."""
    rest = iter(found)
    scores = [region_score(answer or next(rest), unmasked, cached=answer is not None) for answer in answers]
    return explanation_service_pb2.ScoreRegionsResponse(scores=scores, full=unmasked)
