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
    """What the bearer of a token may do."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tenant: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Whose jobs they are."""
    roles: frozenset[Role] = frozenset({"explain"})
    """`explain`: explain and predict; `admin`: also change models and retry buried jobs."""


class ImageSettings(BaseModel):
    """How large a picture may be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_bytes: Annotated[int, Field(gt=0)] = 16 * MIB
    """Bytes of an encoded file."""
    max_pixels: Annotated[int, Field(gt=0)] = 64_000_000
    """Width times height. 8000 x 8000 is just admitted."""
    max_frames: Annotated[int, Field(gt=0)] = 1_000
    """Frames of an animation."""
    decode_memory: Annotated[int, Field(ge=32 * MIB)] = 256 * MIB
    """Bytes that reading one image may take: 4 a pixel of PNG and JPEG, up to 12 of progressive JPEG, 17 of WebP. An
    image that would take more is refused from its header. Set the workers' `max_image_memory` as high."""
    decode_seconds: Positive = 30.0
    """Longest time that reading one image may take; its process is killed then."""
    decode_processes: Annotated[int, Field(ge=1, le=64)] = 2
    """Processes that read images, one at a time each; each may take `decode_memory` and 60 MB. Images of more than 4
    megapixels leave one of them to smaller ones."""

    def limits(self) -> ImageLimits:
        """Returns the limits alone."""
        return ImageLimits(
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            memory=self.decode_memory,
            seconds=self.decode_seconds,
        )


class JobSettings(BaseModel):
    """How long jobs may take, and how many one call may have in flight."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_deadline: Positive = 3_600.0
    """Deadline of a job whose request names none, in seconds, waiting included."""
    max_deadline: Positive = 86_400.0
    """Longest deadline that a request may name, in seconds."""
    predict_deadline: Positive = 60.0
    """Longest time that Predict waits for its answer, in seconds."""
    regions_deadline: Positive = 300.0
    """Longest time that ScoreRegions waits for its answer, in seconds."""
    max_in_flight: Annotated[int, Field(ge=1)] = 64
    """Jobs that one ExplainMany call may have in flight; flow control holds the rest back."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_deadline > self.max_deadline:
            raise ValueError(f"default_deadline must be at most max_deadline ({self.max_deadline:g} s)")
        return self

    def limits(self) -> TimeLimits:
        """Returns the limits of deadlines alone."""
        return TimeLimits(default=self.default_deadline, maximum=self.max_deadline)


class ConceptLimits(BaseModel):
    """How much one fit of concepts may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_images: Annotated[int, Field(ge=1)] = 5_000
    """Images that one FitConcepts call may send."""
    max_bytes: Annotated[int, Field(ge=MIB)] = 256 * MIB
    """Bytes of them together; `queue.upload_share` and `queue.tenant_share` bound them too, until the job has ended."""
    fit_deadline: Positive = 7_200.0
    """Longest time that a fit may take, in seconds, waiting included; also for a fit that names none."""
    answer_deadline: Positive = 60.0
    """Longest time that returning a stored set may take, in seconds."""


class TlsSettings(BaseModel):
    """TLS of the gRPC endpoint; certificates that change on disk are taken up without a restart."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    certificate: Path | None = None
    """PEM file of the certificate chain. Not set: no TLS."""
    key: Path | None = None
    """PEM file of its private key."""
    client_ca: Path | None = None
    """PEM file of the authorities whose clients are let in. Set: clients must have a certificate."""

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class LoginSettings(BaseModel):
    """How many unknown tokens an address may send."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    attempts: Annotated[int, Field(ge=1)] = 10
    """Unknown tokens in a row after which further unknown tokens from an address must wait; known tokens never wait."""
    window: Positive = 60.0
    """Time after which it has all of them again, in seconds."""
    max_addresses: Annotated[int, Field(ge=1)] = 10_000
    """Addresses that are remembered; of IPv6 a network of 64 bits counts as one."""


class ConnectionSettings(BaseModel):
    """What a connection may do, and for how long it stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_message_bytes: Annotated[int, Field(ge=MIB)] = 32 * MIB
    """Largest message either way, in bytes; an image must fit into it."""
    max_metadata_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    """Largest metadata of a call, in bytes."""
    max_streams: Annotated[int, Field(ge=1)] = 1_000
    """Calls at the same time on one connection."""
    max_connections: Annotated[int, Field(ge=1)] = 4_096
    """Connections at the same time to each address; further ones are closed at once. Keep it below the limit of open
    files of the process."""
    max_idle: Positive = 300.0
    """Time after which a connection without a call is closed, in seconds; a client connects anew with its next call."""
    handshake_timeout: Positive = 20.0
    """Time that a new connection has for its handshakes, TLS and HTTP/2, in seconds."""
    max_age: Positive = 1_800.0
    """Age after which a connection is asked to come anew, so that load spreads over new replicas, in seconds."""
    max_age_grace: Positive = 900.0
    """Time that its calls then have to end, in seconds. Streams are moved before it passes; jobs go on."""
    keepalive_interval: Positive = 60.0
    """Silence after which the service asks whether the client is still there, in seconds."""
    keepalive_timeout: Positive = 20.0
    """Time that the client has to answer that, in seconds; then its calls count as dropped."""
    min_client_keepalive: Positive = 10.0
    """A client that asks more often than this, in seconds, is sent away."""

    @property
    def max_stream_seconds(self) -> float:
        """Age at which a stream is moved: before the connection's grace can cut it off."""
        return 0.9 * self.max_age_grace


class CallSettings(BaseModel):
    """How many calls may be open at the same time, in each replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_per_tenant: Annotated[int, Field(ge=1)] = 512
    """Calls of one tenant, streams included, over all its connections. Further ones are refused with
    RESOURCE_EXHAUSTED, before their messages are read. Whoever needs no tokens is one tenant."""
    max_open_watches: Annotated[int, Field(ge=1)] = 64
    """Streams of the health service, which need no token."""
    max_pending: Annotated[int, Field(ge=1000)] = 20_000
    """Calls that have arrived and that the service has not looked at yet. Past it, gRPC resets calls of everybody."""
    refusal_delay: Annotated[float, Field(ge=0, le=60)] = 1.0
    """Time for which the refusal of a call past `max_per_tenant` is held back, in seconds, so that whoever tries again
    at once takes no processor time from others."""


class ServiceSettings(BaseSettings):
    """All settings of the service. `SAGITTAL_QUEUE__URL` sets `queue.url`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True, use_attribute_docstrings=True
    )

    listen: Addresses = ("127.0.0.1:50051",)
    """Addresses of the gRPC endpoint, comma separated: `host:port` or `unix:///path`."""
    metrics_host: str = "127.0.0.1"
    """Address that `/metrics` listens on."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of `/metrics`. 0 switches it off."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""
    queue: QueueSettings = QueueSettings()
    """The queue on Redis."""
    tracing: TracingSettings = TracingSettings()
    """Where traces go."""
    images: ImageSettings = ImageSettings()
    """How large a picture may be."""
    jobs: JobSettings = JobSettings()
    """How long jobs may take."""
    fits: ConceptLimits = ConceptLimits()
    """How much one fit of concepts may take."""
    concepts: ConceptStorage = ConceptStorage()
    """Where concept sets are."""
    connections: ConnectionSettings = ConnectionSettings()
    """What a connection may do."""
    calls: CallSettings = CallSettings()
    """How many calls may be open at the same time."""
    tls: TlsSettings = TlsSettings()
    """TLS of the gRPC endpoint."""
    tokens: dict[str, Token] = {}
    """Who may call, by the SHA-256 of the bearer token in hexadecimal, as JSON. Empty: everyone may do everything."""
    logins: LoginSettings = LoginSettings()
    """How many unknown tokens an address may send."""
    admin_listen: str = ""
    """Address of a second listener, `host:port`: health and channelz in the clear, without tokens, and nothing of the
    API. Empty: none. Keep it on 127.0.0.1: channelz tells who is connected."""
    reflection: bool = True
    """Whether clients may ask for the API's description."""
    models_files: Annotated[tuple[Path, ...], NoDecode] = ()
    """Model files of the workers, comma separated. The service registers what they name, so that jobs are accepted
    before the first worker has started. Not set: workers register their own files, and the API the rest."""
    model_refresh: Annotated[float, Field(ge=0)] = 1.0
    """Age up to which the description of a model is used without asking Redis, in seconds."""
    health_interval: Positive = 2.0
    """Time between two looks whether Redis answers and how deep the queue is, in seconds."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Time that calls have to end after SIGTERM before their streams are moved, in seconds."""

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
                raise ValueError("tokens are named by their SHA-256: 64 lower-case hexadecimal digits, never the token")
        return value
