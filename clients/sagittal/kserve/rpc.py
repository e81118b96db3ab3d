"""The Open Inference Protocol over gRPC: ModelInfer explains, as MLServer's runtimes for explainers do."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from sagittal.client import NotFound, SagittalError
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.kserve import open_inference as oip
from sagittal.kserve.explainer import Explainer
from sagittal.kserve.loading import Loading
from sagittal.kserve.rest import MAX_BODY

#: Time before a caller's deadline at which it gets the state so far, in seconds.
MARGIN = 0.5

#: gRPC status of each code.
_STATUSES: Mapping[int, grpc.StatusCode] = {int(status.value[0]): status for status in grpc.StatusCode}

_OPTIONS = (("grpc.max_receive_message_length", MAX_BODY), ("grpc.max_send_message_length", -1))

Context = grpc.aio.ServicerContext[Any, Any]


def make_server(explainer: Explainer, loading: Loading, name: str, *, max_calls: int) -> grpc.aio.Server:
    """Returns a server that explains a model under its name; it has no port yet."""
    service = _Service(explainer, loading, name)
    methods: Mapping[str, tuple[Callable[..., Awaitable[Any]], Any]] = {
        "ServerLive": (service.live, pb.ServerLiveRequest),
        "ServerReady": (service.ready, pb.ServerReadyRequest),
        "ServerMetadata": (service.server, pb.ServerMetadataRequest),
        "ModelReady": (service.model_ready, pb.ModelReadyRequest),
        "ModelMetadata": (service.describe, pb.ModelMetadataRequest),
        "ModelInfer": (service.infer, pb.ModelInferRequest),
    }
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            behaviour, request_deserializer=kind.FromString, response_serializer=_bytes
        )
        for method, (behaviour, kind) in methods.items()
    }
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=max_calls)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    return server


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


class _Service:
    """The methods."""

    def __init__(self, explainer: Explainer, loading: Loading, name: str) -> None:
        self._explainer = explainer
        self._loading = loading
        self._name = name

    async def live(self, _request: pb.ServerLiveRequest, _context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, _request: pb.ServerReadyRequest, _context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._loading.ready)

    async def server(self, _request: pb.ServerMetadataRequest, _context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**oip.server_metadata())

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        await self._check_name(request.name, context)
        return pb.ModelReadyResponse(ready=self._loading.ready)

    async def describe(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        await self._check_name(request.name, context)
        return pb.ModelMetadataResponse(**oip.model_metadata(self._name))

    async def infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        await self._check_name(request.model_name, context)
        left = context.time_remaining()
        try:
            asked = oip.read_message(request)
            answer = await self._explainer.explain(asked, at_most=None if left is None else max(0.0, left - MARGIN))
        except SagittalError as error:
            await _abort(context, error)
            raise
        if answer.error is not None:
            await _abort(context, answer.error)
        return oip.write_message(self._name, request.id, answer)

    async def _check_name(self, name: str, context: Context) -> None:
        if name != self._name:
            await _abort(context, NotFound(f"there is no model {name!r}; this explainer has {self._name!r}"))


async def _abort(context: Context, error: SagittalError) -> None:
    """Ends the call with the status of an error."""
    await context.abort(_STATUSES.get(error.code, grpc.StatusCode.INTERNAL), f"{error.reason}: {error}")
