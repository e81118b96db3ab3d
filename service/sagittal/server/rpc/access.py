"""Authentication and authorisation: the tenant and roles of each call."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

import structlog

from sagittal.core.errors import PermissionDenied, Unauthenticated
from sagittal.process.logs import new_trace_context, trace_context, trace_id
from sagittal.process.tracing import current_span
from sagittal.queue.turns import ON_BEHALF_OF
from sagittal.server.rpc.layers import Call, Proceed
from sagittal.server.settings import LoginSettings, Role, Token

#: Leading bits of an IPv6 address that count, because one customer of a network has all the others.
_IPV6_PREFIX = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Peer:
    """Remaining attempts of one address."""

    tries: float
    """Calls without a known token that it may still send."""
    seen: float
    """Time at which `tries` was computed, on the clock."""


class FailedLogins:
    """A bucket of attempts for each address, for a bounded number of addresses.

    A known token never waits, so nobody is locked out by others behind the same proxy. The length of a token protects
    it against guessing. The limit only keeps a misconfigured or hostile caller from filling the log and from taking
    processor time, and alerts the operator.
    """

    def __init__(self, settings: LoginSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._delayed = 0

    async def refusal(self, peer: str, text: str) -> Unauthenticated:
        """Counts a call without a known token. Returns its error, after a delay if the address has no attempts left."""
        try:
            self.failed(peer)
        except Unauthenticated as error:
            await self._delay()
            return error
        return Unauthenticated(text)

    async def _delay(self) -> None:
        if self._delayed < self._settings.max_delayed:
            self._delayed += 1
            try:
                await asyncio.sleep(self._settings.refusal_delay)
            finally:
                self._delayed -= 1

    def failed(self, peer: str) -> None:
        """Counts a call without a known token. Raises Unauthenticated if the address has no attempts left."""
        address = address_of(peer)
        known = self._refilled(address)
        if known.tries < 1:
            wait = (1 - known.tries) * self._seconds_for_a_try
            raise Unauthenticated(
                f"too many calls without a known token came from your address: try again in {wait:.0f} s, or send a "
                "known token",
                retry_after=wait,
            )
        known.tries -= 1
        if known.tries < 1:
            _log.warning("logins-limited", address=address, attempts=self._settings.attempts)

    def __len__(self) -> int:
        """Number of remembered addresses."""
        return len(self._peers)

    @property
    def _seconds_for_a_try(self) -> float:
        return self._settings.window / self._settings.attempts

    def _refilled(self, address: str) -> _Peer:
        """Returns the refilled bucket of an address; a new address may replace the least recently seen one."""
        now, most = self._clock(), float(self._settings.attempts)
        known = self._peers.setdefault(address, _Peer(most, now))
        self._peers.move_to_end(address)
        while len(self._peers) > self._settings.max_addresses:
            self._peers.popitem(last=False)
        known.tries = min(most, known.tries + (now - known.seen) / self._seconds_for_a_try)
        known.seen = now
        return known


def address_of(peer: str) -> str:
    """Returns the address of a gRPC peer such as `ipv4:10.0.0.1:50412`, without port; for IPv6 only the network."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> (128 - _IPV6_PREFIX) << (128 - _IPV6_PREFIX))}/{_IPV6_PREFIX}"
    return str(address)


#: RPCs that require the role `admin`, because they change what other callers see.
ADMIN_METHODS = frozenset(
    {
        "/sagittal.v1.ExplanationService/RetryExplanation",
        "/sagittal.v1.ModelService/RegisterModel",
        "/sagittal.v1.ModelService/UpdateModel",
        "/sagittal.v1.ModelService/UnregisterModel",
        "/sagittal.v1.ModelService/LoadModel",
        "/sagittal.v1.ModelService/UnloadModel",
        "/sagittal.v1.ModelService/SetCanary",
    }
)

#: Services that require no token, because probes have none.
OPEN_SERVICES = ("/grpc.health.v1.Health/",)

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of the present RPC."""

    tenant: str = "default"
    roles: frozenset[Role] = frozenset({"explain", "admin"})
    trace_context: str = ""
    """Trace context of the call, in the form of `process.logs.trace_context`."""


_CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Returns the caller of the RPC that runs in this task."""
    return _CALLER.get(Caller())


class Access:
    """Authenticates and authorises calls. Without tokens everyone is the tenant `default` with every role."""

    def __init__(self, tokens: Mapping[str, Token], logins: FailedLogins) -> None:
        self._tokens = tokens
        self._logins = logins

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Layer that sets the caller and the log context."""
        metadata = call.metadata
        trace = current_span().context or trace_context(metadata) or new_trace_context()
        structlog.contextvars.bind_contextvars(rpc=call.method.rpartition("/")[2], trace_id=trace_id(trace))
        if not call.method.startswith(OPEN_SERVICES):
            caller = await self._admit(call, metadata.get("authorization", ""), trace)
            _CALLER.set(caller)
            ON_BEHALF_OF.set(caller.tenant)
        return await proceed()

    async def _admit(self, call: Call, authorization: str, trace: str) -> Caller:
        if not self._tokens:
            return Caller(trace_context=trace)
        token = await self._token(authorization, call.context.peer())
        needed = _needed(call.method)
        if needed not in token.roles:
            raise PermissionDenied(f"this token lacks the role {needed!r}: use one that has it")
        structlog.contextvars.bind_contextvars(tenant=token.tenant)
        return Caller(token.tenant, token.roles, trace)

    async def _token(self, authorization: str, peer: str) -> Token:
        digest = _digest(authorization)
        token = self._tokens.get(digest)  # comparing digests leaks nothing about the secret
        if token is not None:
            return token
        required = "this service requires a token: send the metadata `authorization: Bearer TOKEN`"
        unknown = "this token is unknown: check it, or ask the operator for one"
        raise await self._logins.refusal(peer, unknown if digest else required)


def _needed(method: str) -> Role:
    return "admin" if method in ADMIN_METHODS else "explain"


def _digest(authorization: str) -> str:
    """Returns the SHA-256 of the bearer token; empty if there is none."""
    if not authorization.lower().startswith(_SCHEME):
        return ""
    return hashlib.sha256(authorization[len(_SCHEME) :].strip().encode()).hexdigest()
