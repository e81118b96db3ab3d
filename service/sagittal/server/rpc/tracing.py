"""Layer that creates a span for every RPC, in the trace of its caller."""

import asyncio
from typing import Any

import grpc
from grpc.aio import AbortError

from sagittal.core.errors import SagittalError
from sagittal.process.logs import trace_context
from sagittal.process.tracing import Span, SpanKind, Tracer, within
from sagittal.server.rpc.layers import Call, Proceed

#: Services whose calls are not traced: probes come every few seconds.
UNTRACED = ("/grpc.health.v1.Health/",)

#: Status codes for which the service is at fault, by OpenTelemetry's conventions for servers.
_FAULTS = frozenset({2, 4, 12, 13, 14, 15})


class Tracing:
    """Creates a span for each RPC with its final status code: a dropped stream is CANCELLED, not OK."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Runs the call inside its span."""
        if call.method.startswith(UNTRACED):
            return await proceed()
        service, _, method = call.method.removeprefix("/").partition("/")
        span = self._tracer.span(
            f"{service}/{method}",
            parent=trace_context(call.metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        with within(span):
            try:
                answer = await proceed()
            except BaseException as error:
                _close(span, error, call)
                raise
            span.set({"rpc.grpc.status_code": 0})
            return answer


def _close(span: Span, error: BaseException, call: Call) -> None:
    code = _code(error, call)
    span.set({"rpc.grpc.status_code": code})
    if code in _FAULTS:
        span.fail(error.message if isinstance(error, SagittalError) else type(error).__name__)
    if code == grpc.StatusCode.CANCELLED.value[0]:
        span.note("call cancelled", {"reason": "caller went away"})


def _code(error: BaseException, call: Call) -> int:
    if isinstance(error, SagittalError):
        return error.code
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return int(grpc.StatusCode.CANCELLED.value[0])
    if isinstance(error, AbortError):
        code: Any = call.context.code()
        return int(code.value[0] if isinstance(code, grpc.StatusCode) else code)
    return int(grpc.StatusCode.INTERNAL.value[0])
