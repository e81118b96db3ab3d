"""The protocol over HTTP: V1 `:explain`, the Open Inference Protocol, and KServe's paths of health and readiness."""

import math
from collections.abc import Mapping
from typing import Any

import structlog
from google.rpc import code_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sagittal.client import InvalidRequest, MessageTooLarge, NotFound, SagittalError
from sagittal.kserve import open_inference as oip
from sagittal.kserve.explainer import Answer, Explainer, outcome_document
from sagittal.kserve.loading import Loading
from sagittal.kserve.requests import ExplainRequest, read_body

#: Largest body of a request, in bytes.
MAX_BODY = 64 * 2**20

#: Longer side of the heatmap in a response that is an image, in pixels.
OVERLAY = 512

#: HTTP status of each gRPC code.
STATUSES: Mapping[int, int] = {
    code_pb2.CANCELLED: 409,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 422,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.UNAUTHENTICATED: 401,
}

_log = structlog.get_logger(__name__)


def make_app(explainer: Explainer, loading: Loading, name: str) -> Starlette:
    """Returns the application that explains a model under its name."""
    api = _Api(explainer, loading, name)
    return Starlette(
        routes=[
            Route("/", api.alive),
            Route("/v1/models", api.models),
            Route("/v1/models/{name}", api.ready_v1),
            Route("/v1/models/{name}:explain", api.explain, methods=["POST"]),
            Route("/v1/models/{name}:predict", api.predict, methods=["POST"]),
            Route("/v2", api.server),
            Route("/v2/health/live", api.live),
            Route("/v2/health/ready", api.ready),
            Route("/v2/models/{name}", api.describe),
            Route("/v2/models/{name}/ready", api.ready_v2),
            Route("/v2/models/{name}/infer", api.infer, methods=["POST"]),
        ],
        exception_handlers={SagittalError: _refuse},
    )


class _Api:
    """The endpoints."""

    def __init__(self, explainer: Explainer, loading: Loading, name: str) -> None:
        self._explainer = explainer
        self._loading = loading
        self._name = name

    async def alive(self, _request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> Response:
        return self._readiness({"ready": self._loading.ready})

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"models": [self._name]})

    async def ready_v1(self, request: Request) -> Response:
        self._check_name(request)
        return self._readiness({"name": self._name, "ready": self._loading.ready})

    async def ready_v2(self, request: Request) -> Response:
        self._check_name(request)
        return self._readiness({"name": self._name, "ready": self._loading.ready})

    async def server(self, _request: Request) -> Response:
        return JSONResponse(oip.server_metadata())

    async def describe(self, request: Request) -> Response:
        self._check_name(request)
        return JSONResponse(oip.model_metadata(self._name))

    async def predict(self, request: Request) -> Response:
        self._check_name(request)
        text = f"this is the explainer: send predictions to the predictor, and explanations to {self._name}:explain"
        return JSONResponse({"error": text, "reason": "NOT_SERVED"}, 501)

    async def explain(self, request: Request) -> Response:
        self._check_name(request)
        asked = read_body(await _body(request), request.headers.get("content-type", ""), dict(request.query_params))
        if request.headers.get("accept", "").startswith("image/"):
            return await self._explain_as_image(asked)
        answer = await self._explainer.explain(asked)
        return _respond(answer, {"explanations": [outcome_document(each) for each in answer.outcomes]})

    async def infer(self, request: Request) -> Response:
        self._check_name(request)
        asked, identifier = oip.read_json(await _body(request), request.headers.get(oip.JSON_LENGTH, ""))
        answer = await self._explainer.explain(asked)
        return _respond(answer, oip.write_json(self._name, identifier, answer))

    async def _explain_as_image(self, asked: ExplainRequest) -> Response:
        """Responds with the heatmap on the image as PNG; with JSON if there is none yet."""
        if len(asked.instances) != 1:
            raise InvalidRequest("send one image for a response that is an image", field="instances")
        answer = await self._explainer.explain(ExplainRequest(
            instances=asked.instances, options=asked.options, wait=asked.wait, overlay=asked.overlay or OVERLAY
        ))  # fmt: skip
        (outcome,) = answer.outcomes
        if outcome.overlay:
            headers = {"x-sagittal-job-id": outcome.explanation.job_id}
            return Response(outcome.overlay, media_type="image/png", headers=headers)
        if outcome.ended and answer.error is None:
            text = f"{outcome.explanation.method} makes no heatmap: ask for JSON, or for another method"
            raise InvalidRequest(text, field="parameters.method", job_id=outcome.explanation.job_id)
        return _respond(answer, {"explanations": [outcome_document(outcome)]})

    def _check_name(self, request: Request) -> None:
        if request.path_params["name"] != self._name:
            raise NotFound(f"there is no model {request.path_params['name']!r}; this explainer has {self._name!r}")

    def _readiness(self, document: dict[str, Any]) -> Response:
        if self._loading.ready:
            return JSONResponse(document)
        return JSONResponse(document | {"error": self._loading.reason}, 503)


async def _body(request: Request) -> bytes:
    """Returns the body. Raises MessageTooLarge while it arrives, if it is too large."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise MessageTooLarge(f"the body has more than {MAX_BODY} bytes; send fewer or smaller images")
    return b"".join(parts)


def _respond(answer: Answer, document: dict[str, Any]) -> Response:
    """Returns 200 if all jobs have ended, 202 if some have not, and the status of the error if all failed."""
    if not answer.complete:
        return JSONResponse(document, 202, {"retry-after": "1"})
    if answer.error is not None:
        return error_response(answer.error, document)
    return JSONResponse(document)


def error_response(error: SagittalError, document: Mapping[str, Any] | None = None) -> Response:
    """Returns the response for an error, in the form of KServe's."""
    status = 413 if isinstance(error, MessageTooLarge) else STATUSES.get(error.code, 500)
    headers = {"retry-after": str(math.ceil(error.retry_after))} if error.retry_after else {}
    return JSONResponse({"error": str(error), "reason": error.reason, **(document or {})}, status, headers)


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SagittalError)  # noqa: S101 - the handler is registered for it
    return error_response(error)
