"""A model server in this process that speaks the Open Inference Protocol v2, with faults on demand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import torch
from torch import nn

from sagittal.inference.v2 import inference_pb2 as pb

Tensor = pb.ModelMetadataResponse.TensorMetadata
Answer = Callable[[pb.ModelInferRequest, pb.ModelInferResponse], pb.ModelInferResponse]

TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}


@dataclass(slots=True)
class FakeServer:
    """What it serves, how it misbehaves, and what it was asked."""

    module: nn.Module
    takes: list[Tensor] = field(default_factory=lambda: [Tensor(name="image", datatype="FP32", shape=[-1, 3, 56, 56])])
    gives: list[Tensor] = field(default_factory=lambda: [Tensor(name="scores", datatype="FP32", shape=[-1, 2])])
    ready: bool = True
    version: str = "7"
    scale: float = 1.0
    failures: list[grpc.StatusCode] = field(default_factory=list)
    """Codes that the next calls to ModelInfer are refused with."""
    spoil: Answer = lambda _request, response: response
    """Changes what is answered."""
    seconds: float = 0.0
    """How long an answer takes."""
    asked: list[pb.ModelInferRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    address: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def calls(self) -> int:
        """Calls to ModelInfer, refused ones included."""
        return len(self.asked)

    def infer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        """Answers, or fails as it was told to."""
        with self._lock:
            self.asked.append(request)
            self.metadata.append({name: str(value) for name, value in context.invocation_metadata()})
            failure = self.failures.pop(0) if self.failures else None
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.seconds)
            if failure is not None:
                context.abort(failure, "a fault by construction")
            return self.spoil(request, self._answer(request))
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        (told,) = request.inputs
        values = np.frombuffer(request.raw_input_contents[0], TYPES[told.datatype]).reshape(tuple(told.shape))
        if told.shape[1] != 3:
            values = values.transpose(0, 3, 1, 2)
        with torch.inference_mode():
            scores = self.module(torch.from_numpy(values.astype(np.float32) / self.scale)).numpy()
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=self.version)
        response.outputs.add(name=self.gives[0].name if self.gives else "scores", datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.astype("<f4").tobytes())
        return response


@contextmanager
def serving(server: FakeServer, credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeServer]:
    """Serves on a free port of this machine."""
    with futures.ThreadPoolExecutor(16) as pool:
        listener = grpc.server(pool)
        listener.add_generic_rpc_handlers((_handler(server),))
        address = "127.0.0.1:0"
        port = listener.add_secure_port(address, credentials) if credentials else listener.add_insecure_port(address)
        listener.start()
        server.address = f"127.0.0.1:{port}" if credentials is None else f"localhost:{port}"
        try:
            yield server
        finally:
            listener.stop(grace=None).wait()


def _bytes(message):
    return message.SerializeToString()


def _handler(server: FakeServer) -> grpc.GenericRpcHandler:
    def ready(_request, _context):
        return pb.ModelReadyResponse(ready=server.ready)

    def describe(request, _context):
        return pb.ModelMetadataResponse(name=request.name, versions=["7"], inputs=server.takes, outputs=server.gives)

    methods = {
        "ModelReady": (ready, pb.ModelReadyRequest),
        "ModelMetadata": (describe, pb.ModelMetadataRequest),
        "ModelInfer": (server.infer, pb.ModelInferRequest),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=request.FromString,
            response_serializer=_bytes,
        )
        for name, (behaviour, request) in methods.items()
    }
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
