"""Settings of the queue, shared by the service and the workers."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from sagittal.core.jobs import MAX_EVALUATIONS

Seconds = Annotated[float, Field(gt=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=2**53)]
MIB = 1024 * 1024  # bytes

#: End of the URL of a server that gets no new jobs.
DRAINING = "#draining"

#: Largest number of servers: identifiers of jobs name them with two hexadecimal digits.
MOST_SHARDS = 256

#: Limits by lane that the servers of a queue divide.
_DIVIDED = (
    "max_queued",
    "max_queued_per_tenant",
    "max_queued_evaluations",
    "max_queued_evaluations_per_tenant",
)


class QueueSettings(BaseModel):
    """Address of the queue, and its timeouts, retention and limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS; redis-py defines options such as `?ssl_ca_certs=`) or `unix:///path/to/socket`.

    Several servers, separated by commas, share the jobs: append new ones, and keep the order. One whose URL ends with
    `#draining` gets no new jobs. With `sentinels`, everything except the address applies, and `rediss://` also applies
    to the Sentinels."""
    sentinels: tuple[str, ...] = ()
    """Sentinels as `host:port`. Empty: `url` names the server."""
    sentinel_service: str = "sagittal"
    """Name of the primary that the Sentinels monitor."""
    synchronous_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    """Replicas that must have received a change before it counts as made: a failover then loses nothing that was
    acknowledged. While fewer follow, operations fail as unavailable. 0: replication is asynchronous."""
    username: str | None = None
    """User of Redis's access control list; overrides the one in `url`."""
    password: SecretStr | None = None
    """Password; overrides the one in `url`, so that the URL can be logged."""
    prefix: str = Field(default="sagittal", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """Every key and channel begins with `{prefix}:`. Installations with different prefixes can share one Redis."""

    operation_timeout: Seconds = 6.0
    """Longest time of an operation, including retries, before it fails as unavailable, in seconds."""
    retry_after: Seconds = 2.0
    """Retry delay sent to callers if Redis is unreachable, in seconds."""
    max_connections: Count = 64
    """Connections of one process to Redis, not counting one for subscriptions."""
    max_connections_per_tenant: Count = 2
    """Connections that one tenant's calls may use at the same time in a process of the service while it serves other
    tenants as well. Further operations of the tenant wait. A tenant that is alone may use all connections."""

    lease_seconds: Seconds = 15.0
    """Time without a heartbeat after which a worker loses its lease, in seconds."""
    heartbeat_seconds: Seconds = 1.0
    """Time between two heartbeats of a worker, in seconds; also the longest delay of a cancellation whose notification
    was lost."""
    sweep_seconds: Seconds = 1.0
    """Time between two sweeps for lost leases, passed deadlines and expired retention, in seconds."""
    max_attempts: Count = 3
    """Attempts of a job before it is dead-lettered, if its worker dies each time. The last attempt must be alone on its
    worker; if it was not, one more follows, alone. So at 1 a job that kills workers kills two."""
    batch_every: Annotated[int, Field(ge=2)] = 5
    """Every how many leases the batch lane goes first."""

    retention_seconds: Seconds = 3600.0
    """Time for which an ended job and its events are kept, in seconds."""
    image_retention_seconds: Seconds = 900.0
    """Time for which the request and images of an ended job are kept, in seconds."""
    cache_seconds: Annotated[float, Field(ge=0, le=1e9)] = 3600.0
    """Time for which equal requests share a stored answer, in seconds, within `retention_seconds`; 0 disables it."""
    batch_retention_seconds: Seconds = 30 * 86_400.0
    """Time for which a batch is kept after its last change, in seconds. Its jobs are kept as all others."""
    max_batches: Count = 1_000
    """Batches of one tenant."""
    max_batch_items: Count = 3_000_000
    """Items of all batches of one tenant. An item that has ended uses about 100 bytes in Redis, plus its key."""
    attachment_seconds: Seconds = 600.0
    """Time for which uploaded parts are kept without a submitted job, in seconds since the last part."""
    max_stored_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 2048 * MIB
    """Stored bytes of requests, images and events. Beyond it, the oldest ended jobs go, then new ones are refused."""
    upload_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of `max_stored_bytes` for uploads, which are the images of `FitConcepts`; requests, other images and events
    have the rest."""
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each of these that one tenant may use. Beyond it, the tenant's own ended jobs are deleted, then its new
    ones refused. Set it to 1 if there is only one tenant."""
    max_log_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 64 * MIB
    """Bytes of events that one job may write, not counting its terminal event."""

    max_queued: dict[str, Count] = Field(default_factory=lambda: {"interactive": 1000, "batch": 10000})
    """Queued executions by lane."""
    max_queued_per_tenant: dict[str, Count] = Field(default_factory=lambda: {"interactive": 500, "batch": 5000})
    """Queued executions of one tenant by lane."""
    max_queued_evaluations: dict[str, Count] = Field(
        default_factory=lambda: {"interactive": 5_000_000, "batch": 50_000_000}
    )
    """Estimated model evaluations of queued executions by lane. One job counts as at most its tenant's limit, so that a
    job of any size is admitted if its tenant has nothing else queued."""
    max_queued_evaluations_per_tenant: dict[str, Count] = Field(
        default_factory=lambda: {"interactive": 2_500_000, "batch": 25_000_000}
    )
    """Estimated model evaluations of one tenant's queued executions by lane."""
    absent_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the four limits above for jobs of a model that no worker serves. Each such model is counted separately
    and takes nothing from other models."""
    max_sharers: Count = 256
    """Jobs that may share one execution."""
    assumed_evaluations: Annotated[int, Field(ge=1, le=MAX_EVALUATIONS)] = 1000
    """Assumed model evaluations of a job if nothing is known about its method on its model."""
    overload_retry_after: Seconds = 5.0
    """Retry delay sent to callers if an admission limit is exceeded and the pace is unknown, in seconds."""
    tenant_weights: dict[str, Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(default_factory=dict)
    """Shares of tenants within a lane; tenants that are not named have 1."""

    @property
    def urls(self) -> Sequence[str]:
        """URLs of the servers, in order."""
        return [url.strip() for url in self.url.split(",")]

    @property
    def draining(self) -> bool:
        """Whether the one server gets no new jobs."""
        return self.url.endswith(DRAINING)

    def shards(self) -> Sequence["QueueSettings"]:
        """Returns the settings of each server: limits of what all store and queue are divided among those in use."""
        if len(self.urls) == 1:
            return [self]
        count = sum(not url.endswith(DRAINING) for url in self.urls)

        def divided(limits: Mapping[str, int]) -> Mapping[str, int]:
            return {lane: math.ceil(limit / count) for lane, limit in limits.items()}

        shares = {name: divided(getattr(self, name)) for name in _DIVIDED}
        stored = max(self.max_stored_bytes // count, MIB)
        return [self.model_copy(update={"url": url, "max_stored_bytes": stored} | shares) for url in self.urls]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"heartbeat_seconds ({self.heartbeat_seconds}) must be at most half of lease_seconds "
                f"({self.lease_seconds}); otherwise one late heartbeat loses the lease"
            )
        if not all(self.urls) or len(self.urls) > MOST_SHARDS:
            raise ValueError(f"url must have 1 to {MOST_SHARDS} URLs, separated by commas, without empty ones")
        if len(self.urls) > 1 and self.sentinels:
            raise ValueError("sentinels name the primary of one server: give one url, or several without sentinels")
        if self.urls[0].endswith(DRAINING):
            raise ValueError("the first url has the models, concept sets and batches, so it cannot be draining")
        return self
