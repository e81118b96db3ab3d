"""Settings of the service, from environment variables that begin with `SAGITTAL_` (`__` between levels)."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sagittal.core.images import ImageLimits
from sagittal.core.requests import TimeLimits
from sagittal.process.logs import LogFormat, LogLevel
from sagittal.process.tracing import TracingSettings
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptStorage

MIB = 2**20  # bytes

_SHA256 = re.compile(r"^[0-9a-f]{64}$")

Role = Literal["explain", "admin"]

Positive = Annotated[float, Field(gt=0)]
Addresses = Annotated[tuple[str, ...], NoDecode]


class Token(BaseModel):
    """Tenant and roles of a bearer token."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tenant: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Tenant to which the caller's jobs belong."""
    roles: frozenset[Role] = frozenset({"explain"})
    """`explain`: explain and predict; `admin`: also change models and retry dead-lettered jobs."""


class ImageSettings(BaseModel):
    """Limits for the size of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_bytes: Annotated[int, Field(gt=0)] = 16 * MIB
    """Bytes of an encoded file."""
    max_pixels: Annotated[int, Field(gt=0)] = 64_000_000
    """Width times height; 8000 x 8000 is the largest square."""
    max_frames: Annotated[int, Field(gt=0)] = 1_000
    """Frames of an animation."""
    decode_memory: Annotated[int, Field(ge=32 * MIB)] = 256 * MIB
    """Bytes that reading one image may take: 4 per pixel for PNG and JPEG, up to 12 for progressive JPEG, 17 for WebP.
    A larger image is refused by its header. Set the workers' `max_image_memory` at least as high."""
    decode_seconds: Positive = 30.0
    """Longest time of reading one image, in seconds; its process is then killed."""
    decode_processes: Annotated[int, Field(ge=1, le=64)] = 2
    """Processes that read images, each one at a time; each may take `decode_memory` and 60 MB. Images above 4
    megapixels leave one process to smaller ones. All but one have a low priority."""

    def limits(self) -> ImageLimits:
        """Returns the limits for decoding."""
        return ImageLimits(
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            memory=self.decode_memory,
            seconds=self.decode_seconds,
        )


class JobSettings(BaseModel):
    """Deadlines of jobs, and how many are accepted at the same time."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_deadline: Positive = 3_600.0
    """Deadline of a job whose request sets none, in seconds from its acceptance."""
    max_deadline: Positive = 86_400.0
    """Longest deadline that a request may set, in seconds."""
    predict_deadline: Positive = 60.0
    """Longest time that Predict waits for its answer, in seconds."""
    regions_deadline: Positive = 300.0
    """Longest time that ScoreRegions waits for its answer, in seconds."""
    max_accepting_per_tenant: Annotated[int, Field(ge=1)] = 1
    """Requests of one tenant that a replica checks and stores at the same time while other tenants send requests too.
    Further ones wait. A tenant that is alone may have 64."""
    max_in_flight: Annotated[int, Field(ge=1)] = 64
    """Jobs that one ExplainMany call may have in flight; flow control delays the other requests."""
    max_items_in_flight: Annotated[int, Field(ge=1)] = 512
    """Items that one AddBatchItems call may have in flight; flow control delays the other requests."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_deadline > self.max_deadline:
            raise ValueError(
                f"default_deadline is {self.default_deadline:g} s; give at most max_deadline, {self.max_deadline:g} s"
            )
        return self

    def limits(self) -> TimeLimits:
        """Returns the limits for deadlines."""
        return TimeLimits(default=self.default_deadline, maximum=self.max_deadline)


class ConceptLimits(BaseModel):
    """Limits for one concept fit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_images: Annotated[int, Field(ge=1)] = 5_000
    """Images that one FitConcepts call may send."""
    max_bytes: Annotated[int, Field(ge=MIB)] = 256 * MIB
    """Total bytes of these images; `queue.upload_share` and `queue.tenant_share` also limit them until the job ends."""
    fit_deadline: Positive = 7_200.0
    """Longest time of a fit, in seconds from its acceptance; also the deadline of a fit that sets none."""
    answer_deadline: Positive = 60.0
    """Longest time of returning a stored set, in seconds."""


class TlsSettings(BaseModel):
    """TLS of the gRPC endpoint; certificates that change on disk are reloaded without a restart."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    certificate: Path | None = None
    """PEM file with the certificate chain. Not set: no TLS."""
    key: Path | None = None
    """PEM file with the certificate's private key."""
    client_ca: Path | None = None
    """PEM file with the authorities that sign client certificates. If set, clients must present a certificate."""

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("only one of certificate and key is set; set both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca is set without certificate and key; set these too")
        return self


class LoginSettings(BaseModel):
    """Limits for calls without a known token from one address."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    attempts: Annotated[int, Field(ge=1)] = 10
    """Calls with an unknown token, or with none, after which further ones from an address must wait; known tokens never
    wait."""
    window: Positive = 60.0
    """Time after which an address has all its attempts again, in seconds."""
    max_addresses: Annotated[int, Field(ge=1)] = 10_000
    """Addresses that are remembered; an IPv6 network of 64 bits counts as one."""
    refusal_delay: Annotated[float, Field(ge=0, le=60)] = 1.0
    """Delay of the refusal of a call that must wait, in seconds, so that a client that guesses without pause takes no
    processor time from others."""
    max_delayed: Annotated[int, Field(ge=1)] = 1_000
    """Refusals that are delayed at the same time, of all addresses; further ones are immediate."""


class ConnectionSettings(BaseModel):
    """Limits for connections, and their lifetime."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_message_bytes: Annotated[int, Field(ge=MIB)] = 32 * MIB
    """Largest message in either direction, in bytes; it must hold an image."""
    max_metadata_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    """Largest metadata of a call, in bytes."""
    max_streams: Annotated[int, Field(ge=1)] = 1_000
    """Simultaneous calls on one connection."""
    max_connections: Annotated[int, Field(ge=1)] = 4_096
    """Simultaneous connections to each address; further ones are closed immediately. Keep it below the process's limit
    of open files."""
    max_idle: Positive = 300.0
    """Time after which a connection without a call is closed, in seconds; a client reconnects for its next call."""
    handshake_timeout: Positive = 20.0
    """Time for the handshakes of a new connection, TLS and HTTP/2, in seconds."""
    max_age: Positive = 1_800.0
    """Age after which a client must reconnect, so that load spreads to new replicas, in seconds."""
    max_age_grace: Positive = 900.0
    """Time for its calls to end after that, in seconds. Streams are moved before it passes; jobs continue."""
    keepalive_interval: Positive = 60.0
    """Silence after which the service pings the client, in seconds."""
    keepalive_timeout: Positive = 20.0
    """Time for the client to answer the ping, in seconds; after it, the client's calls count as dropped."""
    min_client_keepalive: Positive = 10.0
    """Shortest interval of a client's pings, in seconds; a client that pings more often is disconnected."""

    @property
    def max_stream_seconds(self) -> float:
        """Age at which a stream is moved, before the connection's grace period ends, in seconds."""
        return 0.9 * self.max_age_grace


class CallSettings(BaseModel):
    """Maximum number of open calls in each replica, and of the bytes of their requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_per_tenant: Annotated[int, Field(ge=1)] = 512
    """Open calls of one tenant over all its connections, including streams. Further calls are refused with
    RESOURCE_EXHAUSTED before their messages are read. Without tokens, all callers are one tenant."""
    max_request_bytes_per_tenant: Annotated[int, Field(ge=1)] = 64 * MIB
    """Bytes of one tenant's requests that wait in memory until their jobs are stored. Messages beyond it are read
    later; one alone is always read."""
    max_open_watches: Annotated[int, Field(ge=1)] = 64
    """Open streams of the health service, which need no token."""
    max_pending: Annotated[int, Field(ge=1000)] = 20_000
    """Calls that have arrived and are not handled yet. Beyond it, gRPC resets calls of all callers."""
    refusal_delay: Annotated[float, Field(ge=0, le=60)] = 1.0
    """Delay of a refusal beyond `max_per_tenant`, in seconds, so that a client that retries immediately takes no
    processor time from others."""


class ServiceSettings(BaseSettings):
    """All settings of the service. `SAGITTAL_QUEUE__URL` sets `queue.url`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True, use_attribute_docstrings=True
    )

    listen: Addresses = ("127.0.0.1:50051",)
    """Addresses of the gRPC endpoint, comma separated: `host:port` or `unix:///path`."""
    metrics_host: str = "127.0.0.1"
    """Address on which `/metrics` listens."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of `/metrics`; 0 turns it off."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""
    queue: QueueSettings = QueueSettings()
    """The queue on Redis."""
    tracing: TracingSettings = TracingSettings()
    """Export of traces."""
    images: ImageSettings = ImageSettings()
    """Limits for the size of an image."""
    jobs: JobSettings = JobSettings()
    """Deadlines of jobs."""
    fits: ConceptLimits = ConceptLimits()
    """Limits for one concept fit."""
    concepts: ConceptStorage = ConceptStorage()
    """Storage of concept sets."""
    connections: ConnectionSettings = ConnectionSettings()
    """Limits for connections."""
    calls: CallSettings = CallSettings()
    """Limits for simultaneous calls."""
    tls: TlsSettings = TlsSettings()
    """TLS of the gRPC endpoint."""
    tokens: dict[str, Token] = {}
    """Tenant and roles by the hexadecimal SHA-256 of a bearer token, as JSON. Empty: everyone may do everything."""
    logins: LoginSettings = LoginSettings()
    """Limits for unknown tokens from one address."""
    admin_listen: str = ""
    """Address of a second listener, `host:port`: health and channelz, without TLS, tokens or the API. Empty: none. Keep
    it on 127.0.0.1, because channelz shows who is connected."""
    page: bool = False
    """Whether this process also serves the page and the API for browsers, with the settings `SAGITTAL_PAGE_*` except
    `SAGITTAL_PAGE_ADDRESS` and `_CA`. It takes less processor time than `sagittal-page` beside it."""
    reflection: bool = True
    """Whether clients may query the API's description."""
    models_files: Annotated[tuple[Path, ...], NoDecode] = ()
    """Model files of the workers, comma separated. The service registers their models, so that jobs can be accepted
    before the first worker starts. Not set: workers register their own files, and the API other models."""
    model_refresh: Annotated[float, Field(ge=0)] = 1.0
    """Longest age of a model's cached description, in seconds."""
    health_interval: Positive = 2.0
    """Time between two checks of Redis and of the queue's depth, in seconds."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Time for calls to end after SIGTERM before their streams are moved, in seconds."""

    @field_validator("listen", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        addresses = tuple(part.strip() for part in value.split(",") if part.strip())
        if not addresses:
            raise ValueError("give at least one address, such as 127.0.0.1:50051")
        return addresses

    @field_validator("models_files", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("tokens")
    @classmethod
    def _hashed(cls, value: dict[str, Token]) -> dict[str, Token]:
        for digest in value:
            if not _SHA256.match(digest):
                raise ValueError(
                    "a key is not a SHA-256: give 64 lower-case hexadecimal digits, never the token itself"
                )
        return value
