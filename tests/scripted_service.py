"""A service that follows a script: a real gRPC server with the events that a test writes down."""

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from sagittal.client import Options, Retry
from sagittal.client.images import to_tensor
from sagittal.v1 import concept_pb2, model_pb2, tensor_pb2
from sagittal.v1 import concept_service_pb2 as concepts_pb
from sagittal.v1 import concept_service_pb2_grpc as concepts_grpc
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import explanation_service_pb2_grpc as service_grpc
from sagittal.v1 import model_service_pb2 as models_pb
from sagittal.v1 import model_service_pb2_grpc as models_grpc

JOB = "0123456789abcdef0123456789abcdef"
SALIENCY = np.linspace(0, 1, 49, dtype=np.float16).reshape(7, 7)


def event(sequence: int, **kind: object) -> pb.ExplanationEvent:
    return pb.ExplanationEvent(job_id=JOB, sequence=sequence, **kind)


def whole_log() -> list[pb.ExplanationEvent]:
    """The events of a job that does all there is."""
    patches = pb.PatchSet(grid=7, patches=[8, 9])
    one = pb.PatchSet(grid=7, patches=[8])
    target = pb.ClassScore(index=3, label="lamp", score=0.75)
    kinds = [
        {"accepted": pb.Accepted(queue_position=2, ready_workers=0)},
        {"started": pb.Started(worker="w", attempt=1)},
        {
            "prediction": pb.Prediction(
                target=target, top=[target], baseline_score=0.25, baseline=pb.BASELINE_KIND_BLUR, blur_sigma=50
            )
        },
        {"progress": pb.Progress(fraction=0.5, evaluations=10, objective=-1.5, phase="optimise")},
        {"mask": pb.Mask(saliency=to_tensor(SALIENCY * 0))},
        {"mask": pb.Mask(saliency=to_tensor(SALIENCY), final=True)},
        {
            "sufficient_set": pb.SufficientSet(
                patches=patches,
                score=0.5,
                certificate=pb.Certificate(level=pb.CERTIFICATE_LEVEL_SUBSET_MINIMAL, checked=2, required_score=0.5),
                causal=pb.CausalTriple(sufficiency=0.5, without=0.25, top_without=target),
                diverse=True,
                top=target,
            )
        },
        {"graph_node": pb.GraphNode(id="300", patches=patches, score=0.5, root=True)},
        {"graph_node": pb.GraphNode(id="100", patches=one, score=0.25)},
        {"graph_edge": pb.GraphEdge(parent="300", child="100", removed_patch=9)},
        {"curve": pb.Curve(kind=pb.CURVE_KIND_INSERTION, fractions=[0, 0.5, 1], scores=[0, 0.5, 0.75], auc=0.4375)},
        {"curve": pb.Curve(kind=pb.CURVE_KIND_DELETION, fractions=[0, 0.5, 1], scores=[0.75, 0.25, 0], auc=0.3125)},
        {"concept": pb.ConceptContribution(index=1, name="eye", value=2, contribution=0.5)},
        {"warning": pb.Warning(reason="BASELINE_STILL_CONFIDENT", message="The baseline hides too little.")},
        {
            "completed": pb.Completed(
                insertion=0.4375,
                deletion=0.3125,
                evaluations=20,
                gradient_evaluations=8,
                run_time=duration_pb2.Duration(seconds=1, nanos=500_000_000),
                model_digest="d1",
                model_version="1",
                seed=7,
                method="igos++",
                parameters_json='{"mask_size": 7}',
            )
        },
    ]
    return [event(number, **kind) for number, kind in enumerate(kinds, start=1)]


@dataclass
class Script(
    service_grpc.ExplanationServiceServicer,
    models_grpc.ModelServiceServicer,
    concepts_grpc.ConceptServiceServicer,
):
    """What the service does. Each call of Explain or Watch takes the next of `calls`, the last one again and again."""

    log: list[pb.ExplanationEvent] = field(default_factory=whole_log)
    breaks: list[tuple[int, grpc.StatusCode, str]] = field(default_factory=list)
    """After how many events each streaming call breaks, and how."""
    refuse: status_pb2.Status | None = None
    unavailable: int = 0
    """Unary calls that are answered with UNAVAILABLE first."""
    full: int = 0
    """Requests of ExplainMany that there is no room for first."""
    page: int = 1000
    """Most events on a page of GetExplanation."""
    hang_after: int = 0
    """Streams hold their breath after this event; 0 for never."""
    specs: list[pb.ExplanationSpec] = field(default_factory=list)
    fits: list[list[concepts_pb.FitConceptsRequest]] = field(default_factory=list)
    """The messages of each call of FitConcepts."""
    watched_after: list[int] = field(default_factory=list)
    cancelled_jobs: list[str] = field(default_factory=list)
    dropped: threading.Event = field(default_factory=threading.Event)
    lingers: float = 0.0
    """Seconds from a stream's last event to its end."""
    heard_out: list[bool] = field(default_factory=list)
    """Whether the caller of each stream that came to its end was still there."""
    model: model_pb2.Model = field(default_factory=lambda: model_pb2.Model(name="lamp", version="1", latest=True))
    changes: list[object] = field(default_factory=list)
    images: dict[int, bytes] = field(default_factory=dict)
    """Files of the images that are kept, by their kind."""
    model_exists: bool = False
    """Refuses the registration of a model, because its version is registered with other content."""

    def Explain(self, request: service_pb.ExplainRequest, context: grpc.ServicerContext) -> Iterator:
        self.specs.append(request.spec)
        self._refuse(context)
        yield from (service_pb.ExplainResponse(event=each) for each in self._stream(0, context))

    def WatchExplanation(self, request: service_pb.WatchExplanationRequest, context: grpc.ServicerContext) -> Iterator:
        self.watched_after.append(request.after_sequence)
        self._refuse(context)
        for each in self._stream(request.after_sequence, context):
            yield service_pb.WatchExplanationResponse(event=each)

    def ExplainMany(self, requests: Iterator, context: grpc.ServicerContext) -> Iterator:
        for request in requests:
            self.specs.append(request.spec)
            if self.full:
                self.full -= 1
                failed = failure(8, "QUEUE_FULL", retry_after=0.02)
                yield service_pb.ExplainManyResponse(
                    event=pb.ExplanationEvent(request_id=request.spec.request_id, failed=failed)
                )
                continue
            if self.breaks:
                self._break(context, *self.breaks.pop(0)[1:])
            if request.spec.target.index == 9:
                failed = status_pb2.Status(code=5, message="no such class")
                yield service_pb.ExplainManyResponse(
                    event=pb.ExplanationEvent(request_id=request.spec.request_id, failed=failed)
                )
                continue
            for each in self.log:
                copy = pb.ExplanationEvent()
                copy.CopyFrom(each)
                copy.request_id = request.spec.request_id
                yield service_pb.ExplainManyResponse(event=copy)

    def FitConcepts(self, requests: Iterator, context: grpc.ServicerContext) -> Iterator:
        asked = list(requests)
        self.fits.append(asked)
        if any(request.WhichOneof("part") is None for request in asked):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the settings came twice")
        yield from (concepts_pb.FitConceptsResponse(job=each) for each in self._stream(0, context))

    def GetConceptSet(self, request, context):
        return concepts_pb.GetConceptSetResponse(concept_set=concept_pb2.ConceptSet(name=request.name))

    def SubmitExplanation(self, request, context):
        self.specs.append(request.spec)
        self._answer(context)
        return service_pb.SubmitExplanationResponse(
            explanation=pb.Explanation(job_id=JOB, state=pb.JOB_STATE_QUEUED, model=request.spec.model)
        )

    def GetExplanation(self, request, context):
        self._answer(context)
        states = {
            "completed": pb.JOB_STATE_COMPLETED, "failed": pb.JOB_STATE_FAILED, "cancelled": pb.JOB_STATE_CANCELLED,
        }  # fmt: skip
        state = states.get(self.log[-1].WhichOneof("event"), pb.JOB_STATE_RUNNING)
        start, size = int(request.page_token or 0), min(request.page_size or self.page, self.page)
        found = pb.Explanation(job_id=request.job_id, state=state, model="lamp", events=self.log[start : start + size])
        token = str(start + size) if start + size < len(self.log) else ""
        return service_pb.GetExplanationResponse(explanation=found, next_page_token=token)

    def GetExplanationImage(self, request, context):
        if request.image not in self.images:
            gone = failure(9, "FAILED_PRECONDITION", message="the images are no longer kept")
            context.set_trailing_metadata((("grpc-status-details-bin", gone.SerializeToString()),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, gone.message)
        image = tensor_pb2.Image(encoded=self.images[request.image])
        return service_pb.GetExplanationImageResponse(image=image, exact=True)

    def ListExplanations(self, request, context):
        self._answer(context)
        if reason := request.filter.failure_reason:
            buried = pb.Explanation(job_id=JOB, state=pb.JOB_STATE_FAILED, model="lamp", failure_reason=reason)
            return service_pb.ListExplanationsResponse(explanations=[buried])
        page = int(request.page_token or 0)
        jobs = [pb.Explanation(job_id=f"job-{page}-{n}", state=pb.JOB_STATE_RUNNING) for n in range(2)]
        return service_pb.ListExplanationsResponse(explanations=jobs, next_page_token="1" if page == 0 else "")

    def CancelExplanation(self, request, context):
        self.cancelled_jobs.append(request.job_id)
        return service_pb.CancelExplanationResponse(
            explanation=pb.Explanation(job_id=request.job_id, state=pb.JOB_STATE_CANCELLED)
        )

    def DeleteExplanation(self, request, context):
        self._answer(context)
        return service_pb.DeleteExplanationResponse()

    def RetryExplanation(self, request, context):
        return service_pb.RetryExplanationResponse(
            explanation=pb.Explanation(job_id=f"again-{request.job_id}", state=pb.JOB_STATE_QUEUED)
        )

    def ScoreRegions(self, request, context):
        scores = [service_pb.RegionScore(score=len(each.patches) / 4) for each in request.sets]
        return service_pb.ScoreRegionsResponse(scores=scores, full=pb.ClassScore(index=3, score=0.75))

    def GetModel(self, request, context):
        self._answer(context)
        return models_pb.GetModelResponse(model=self.model)

    def RegisterModel(self, request, context):
        if self.model_exists:
            self.refuse = failure(6, "MODEL_EXISTS")
            self._refuse(context)
        self.changes.append(request)
        return models_pb.RegisterModelResponse(model=request.model)

    def UpdateModel(self, request, context):
        self.refuse = None
        self.changes.append(request)
        return models_pb.UpdateModelResponse(model=request.model)

    def UnregisterModel(self, request, context):
        self.changes.append(request)
        return models_pb.UnregisterModelResponse()

    def LoadModel(self, request, context):
        self.changes.append(request)
        return models_pb.LoadModelResponse()

    def SetCanary(self, request, context):
        self.changes.append(request)
        changed = type(self.model)()
        changed.CopyFrom(self.model)
        if request.HasField("canary"):
            changed.canary.CopyFrom(request.canary)
        return models_pb.SetCanaryResponse(model=changed)

    def UnloadModel(self, request, context):
        self.changes.append(request)
        return models_pb.UnloadModelResponse()

    def ListModels(self, request, context):
        return models_pb.ListModelsResponse(models=[self.model])

    def Predict(self, request, context):
        self._answer(context)
        return models_pb.PredictResponse(top=[pb.ClassScore(index=3, label="lamp", score=0.75)])

    def _stream(self, after: int, context: grpc.ServicerContext) -> Iterator[pb.ExplanationEvent]:
        stop = self.breaks.pop(0) if self.breaks else None
        context.add_callback(self.dropped.set)
        if stop is not None and stop[0] == 0:
            self._break(context, *stop[1:])
        for number, each in enumerate(self.log[after:], start=1):
            yield each
            if stop is not None and number == stop[0]:
                self._break(context, *stop[1:])
            if each.sequence == self.hang_after:
                self.dropped.wait(30)
                return
        time.sleep(self.lingers)
        self.heard_out.append(context.is_active())

    def _break(self, context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> None:
        if code is not grpc.StatusCode.OK:
            context.abort(code, text)

    def _answer(self, context: grpc.ServicerContext) -> None:
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        self._refuse(context)

    def _refuse(self, context: grpc.ServicerContext) -> None:
        if self.refuse is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", self.refuse.SerializeToString()),))
            code = next(code for code in grpc.StatusCode if code.value[0] == self.refuse.code)
            context.abort(code, self.refuse.message)


def failure(
    code: int, reason: str, *, field: str = "", retry_after: float = 0, message: str = "no"
) -> status_pb2.Status:
    """A status as the service makes it."""
    status = status_pb2.Status(code=code, message=message)
    details: list = [error_details_pb2.ErrorInfo(reason=reason, domain="sagittal")]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after:
        nanos = int(retry_after * 1e9)
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=nanos)))
    for detail in details:
        status.details.add().Pack(detail)
    return status


#: Waits so short that tests need not.
OPTIONS = Options(retry=Retry(first_wait=0.01, longest_wait=0.05, call_seconds=2.0, stream_seconds=5.0))


@contextmanager
def served(script: Script) -> Iterator[str]:
    """Serves a script; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service_grpc.add_ExplanationServiceServicer_to_server(script, server)
    models_grpc.add_ModelServiceServicer_to_server(script, server)
    concepts_grpc.add_ConceptServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
