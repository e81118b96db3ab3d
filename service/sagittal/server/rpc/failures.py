"""Converts errors to gRPC statuses: expected ones with details, bugs with only an identifier."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2
from grpc.aio import AbortError

from sagittal.core.errors import SagittalError, internal_status, to_status
from sagittal.server.rpc.layers import Call, Context, Proceed

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_log = structlog.get_logger(__name__)


async def answer_failures(call: Call, proceed: Proceed) -> Any:
    """Outermost layer: turns every exception into a status, so that no stack trace leaves the service."""
    try:
        return await proceed()
    except SagittalError as error:
        await _abort(call.context, to_status(error))
    except (asyncio.CancelledError, AbortError):
        raise
    except Exception:  # noqa: BLE001 - any exception of an RPC ends here and is logged
        incident = secrets.token_hex(6)
        _log.exception("rpc-failed-unexpectedly", incident=incident, rpc=call.method)
        await _abort(call.context, internal_status(incident))


async def _abort(context: Context, status: status_pb2.Status) -> None:
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, trailing_metadata=details)
