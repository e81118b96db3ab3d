"""Settings of the queue, shared by the service and the workers."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from sagittal.core.jobs import MAX_EVALUATIONS

Seconds = Annotated[float, Field(gt=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=2**53)]
MIB = 1024 * 1024  # bytes


class QueueSettings(BaseModel):
    """Where the queue is, how long things last, and how much it admits."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS; `?ssl_ca_certs=` and the like are redis-py's) or `unix:///path/to/socket`.

    With `sentinels` set, all of it but the address counts, and `rediss://` is for the Sentinels too."""
    sentinels: tuple[str, ...] = ()
    """Sentinels as `host:port`. Empty: `url` names the server itself."""
    sentinel_service: str = "sagittal"
    """Name of the primary that the Sentinels watch."""
    username: str | None = None
    """User of Redis's access control list; overrides that of `url`."""
    password: SecretStr | None = None
    """Password; overrides that of `url`, so that the URL can be logged."""
    prefix: str = Field(default="sagittal", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """Every key and channel begins with `{prefix}:`; installations with different prefixes share a Redis unseen."""

    operation_timeout: Seconds = 6.0
    """Longest time an operation takes before it fails as unavailable, retries included, in seconds."""
    retry_after: Seconds = 2.0
    """What callers are told to wait when Redis is away, in seconds."""
    max_connections: Count = 64
    """Connections of one process to Redis, one more for its subscriptions not counted."""
    max_connections_per_tenant: Count = 8
    """Connections that one tenant's calls may use at the same time in a process of the service; further operations of
    the tenant wait for their turn, and other tenants' do not."""

    lease_seconds: Seconds = 15.0
    """Time without a heartbeat after which a run is taken from its worker, in seconds."""
    heartbeat_seconds: Seconds = 1.0
    """Time between two heartbeats of a worker, in seconds; also how soon a run hears of its cancellation where word
    of it was lost."""
    sweep_seconds: Seconds = 1.0
    """Time between two looks for lost leases, passed deadlines and spent retention, in seconds."""
    max_attempts: Count = 3
    """Times a run may be begun. A job whose last attempt loses its worker is dead-lettered if it was alone there, else
    it is begun once more, alone: so at 1 a job that takes workers down takes two."""
    batch_every: Annotated[int, Field(ge=2)] = 5
    """Every so many leases the batch lane is looked at first."""

    retention_seconds: Seconds = 3600.0
    """Time that an ended job and its events are kept, in seconds."""
    image_retention_seconds: Seconds = 900.0
    """Time that the request and the images of an ended job are kept, in seconds."""
    cache_seconds: Annotated[float, Field(ge=0, le=1e9)] = 3600.0
    """Time that an answer is given again to equal requests, in seconds, within `retention_seconds`; 0 for never."""
    attachment_seconds: Seconds = 600.0
    """Time that parts of a job are kept while it has not been submitted yet, in seconds since the last of them."""
    max_stored_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 2048 * MIB
    """Bytes of requests, images and events kept; the oldest ended jobs go first, then new ones are refused."""
    upload_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of `max_stored_bytes` for uploads, the images of `FitConcepts`; requests, other images and events have the
    rest."""
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of either room that one tenant may take: past it the tenant's own ended jobs go, then it is refused. Set it
    to 1 if there is only one tenant."""
    max_log_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 64 * MIB
    """Bytes of events that one job may write, its terminal event not counted."""

    max_queued: dict[str, Count] = Field(default_factory=lambda: {"interactive": 1000, "batch": 10000})
    """Runs that may wait, by lane."""
    max_queued_per_tenant: dict[str, Count] = Field(default_factory=lambda: {"interactive": 500, "batch": 5000})
    """Runs of one tenant that may wait, by lane."""
    max_queued_evaluations: dict[str, Count] = Field(
        default_factory=lambda: {"interactive": 5_000_000, "batch": 50_000_000}
    )
    """Estimated model evaluations that may wait, by lane. One job counts as at most what its tenant may have waiting,
    so that it is admitted, however large, when nothing else of its tenant waits."""
    max_queued_evaluations_per_tenant: dict[str, Count] = Field(
        default_factory=lambda: {"interactive": 2_500_000, "batch": 25_000_000}
    )
    """Estimated model evaluations of one tenant that may wait, by lane."""
    absent_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the four bounds above that work for one model may take while no worker serves it. It is counted by
    itself, and takes nothing from other models."""
    max_sharers: Count = 256
    """Jobs that may share one run."""
    assumed_evaluations: Annotated[int, Field(ge=1, le=MAX_EVALUATIONS)] = 1000
    """Model evaluations that a job is taken to need while nothing is known of its method on its model."""
    overload_retry_after: Seconds = 5.0
    """What callers are told to wait past an admission bound while no pace is known, in seconds."""
    tenant_weights: dict[str, Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(default_factory=dict)
    """Shares of tenants within a lane, relative to 1 for those not named."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"heartbeat_seconds ({self.heartbeat_seconds}) must be at most half of lease_seconds "
                f"({self.lease_seconds}), or a single late heartbeat loses the lease"
            )
        return self
