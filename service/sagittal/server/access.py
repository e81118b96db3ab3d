"""Who calls, and what they may do."""

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

from sagittal.core.errors import PermissionDenied, Unauthenticated
from sagittal.runtime.telemetry import new_trace_context, trace_context, trace_id
from sagittal.runtime.tracing import current_span
from sagittal.server.layers import Call, Proceed
from sagittal.server.logins import FailedLogins
from sagittal.server.settings import Role, Token

#: RPCs that change what others see.
ADMIN_METHODS = frozenset(
    {
        "/sagittal.v1.ExplanationService/RetryExplanation",
        "/sagittal.v1.ModelService/RegisterModel",
        "/sagittal.v1.ModelService/UpdateModel",
        "/sagittal.v1.ModelService/UnregisterModel",
        "/sagittal.v1.ModelService/LoadModel",
        "/sagittal.v1.ModelService/UnloadModel",
    }
)

#: Services that need no token: probes have none.
OPEN_SERVICES = ("/grpc.health.v1.Health/",)

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the call that is being answered."""

    tenant: str = "default"
    roles: frozenset[Role] = frozenset({"explain", "admin"})
    trace_context: str = ""
    """The trace of the call, as `runtime.telemetry.trace_context` writes it."""


_CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Returns who makes the call that runs in this task."""
    return _CALLER.get(Caller())


class Access:
    """Finds out who calls, and admits them or not. Without tokens everyone is the tenant `default`, with every role."""

    def __init__(self, tokens: Mapping[str, Token], logins: FailedLogins) -> None:
        self._tokens = tokens
        self._logins = logins

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Is the layer that sets the caller, and the context of the log."""
        metadata = call.metadata
        trace = current_span().context or trace_context(metadata) or new_trace_context()
        structlog.contextvars.bind_contextvars(rpc=call.method.rpartition("/")[2], trace_id=trace_id(trace))
        if not call.method.startswith(OPEN_SERVICES):
            _CALLER.set(self._admit(call, metadata.get("authorization", ""), trace))
        return await proceed()

    def admits(self, method: str, metadata: Mapping[str, str]) -> bool:
        """Whether a call will be admitted, as far as its metadata tell."""
        if not self._tokens or method.startswith(OPEN_SERVICES):
            return True
        token = self._tokens.get(_digest(metadata.get("authorization", "")))
        return token is not None and _needed(method) in token.roles

    def _admit(self, call: Call, authorization: str, trace: str) -> Caller:
        if not self._tokens:
            return Caller(trace_context=trace)
        token = self._token(authorization, call.context.peer())
        needed = _needed(call.method)
        if needed not in token.roles:
            raise PermissionDenied(f"this token lacks the role {needed!r}: use one that has it")
        structlog.contextvars.bind_contextvars(tenant=token.tenant)
        return Caller(token.tenant, token.roles, trace)

    def _token(self, authorization: str, peer: str) -> Token:
        digest = _digest(authorization)
        if not digest:
            raise Unauthenticated("this service wants a token: send the metadata `authorization: Bearer TOKEN`")
        token = self._tokens.get(digest)  # by the digest of a secret, whose comparison tells nothing about the secret
        if token is None:
            self._logins.failed(peer)
            raise Unauthenticated("this token is not known here: check it, or ask the operator for one")
        return token


def _needed(method: str) -> Role:
    return "admin" if method in ADMIN_METHODS else "explain"


def _digest(authorization: str) -> str:
    """Returns the SHA-256 of the bearer token; empty where there is none."""
    if not authorization.lower().startswith(_SCHEME):
        return ""
    return hashlib.sha256(authorization[len(_SCHEME) :].strip().encode()).hexdigest()
