"""EstimateExplanations: what explanations will cost, from the costs of ended jobs."""

from sagittal.core.errors import InvalidRequest
from sagittal.core.jobs import MAX_EVALUATIONS, Cost
from sagittal.queue.protocol import JobQueue
from sagittal.server.catalogue import ready_workers
from sagittal.server.intake import Intake
from sagittal.v1 import explanation_service_pb2 as api

#: Most images of one estimate.
MAX_IMAGES = 1_000_000_000

#: Longest estimated time in seconds, which fits into a Duration.
MAX_TIME = 3e11


async def estimate(
    request: api.EstimateExplanationsRequest, intake: Intake, queue: JobQueue
) -> api.EstimateExplanationsResponse:
    """Returns the cost of so many images with a common specification. Raises SagittalError."""
    for name in ("image", "request_id"):
        if name in {field.name for field, _ in request.spec.ListFields()}:
            raise InvalidRequest(
                f"spec.{name} is set; an estimate is for any image: leave it out", field=f"spec.{name}"
            )
    if request.images > MAX_IMAGES:
        text = f"images is {request.images}; give 1 to {MAX_IMAGES:,}, or 0 for 1"
        raise InvalidRequest(text, field="images")
    checked = await intake.check(request.spec)
    cost, same = await intake.estimate(checked)
    images, workers = max(request.images, 1), ready_workers(checked.model)
    backlog = await queue.backlog()
    queued = sum(each.queued_evaluations for (model, _), each in backlog.items() if model == checked.model.name)
    found = api.EstimateExplanationsResponse(
        basis=_basis(cost, same=same),
        evaluations=round(images * min(cost.evaluations, MAX_EVALUATIONS)),
        ready_workers=workers,
        queued_evaluations=queued,
    )
    if cost.device:
        found.worker_time.FromMilliseconds(_milliseconds(images * cost.device))
        if workers:
            found.wall_time.FromMilliseconds(_milliseconds(wall_seconds(cost, images, queued, workers)))
    return found


def wall_seconds(cost: Cost, images: int, queued: int, workers: int) -> float:
    """Returns the seconds until images are completed behind queued evaluations; one image is not divided."""
    ahead = queued * cost.device / max(cost.evaluations, 1.0)
    return max((ahead + images * cost.device) / workers, ahead / workers + cost.seconds)


def _milliseconds(seconds: float) -> int:
    return round(min(seconds, MAX_TIME) * 1e3)


def _basis(cost: Cost, *, same: bool) -> "api.EstimateBasis.ValueType":
    if same:
        return api.ESTIMATE_BASIS_SAME_SETTING
    if cost.seconds:
        return api.ESTIMATE_BASIS_SAME_METHOD
    return api.ESTIMATE_BASIS_LIMIT if cost.evaluations else api.ESTIMATE_BASIS_UNSPECIFIED
