"""Settings of the page, from environment variables that begin with `SAGITTAL_PAGE_`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sagittal.process.logs import LogFormat, LogLevel

MIB = 1024 * 1024


class PageSettings(BaseSettings):
    """All settings of `sagittal-page`."""

    model_config = SettingsConfigDict(env_prefix="SAGITTAL_PAGE_", frozen=True, use_attribute_docstrings=True)

    listen_host: str = "127.0.0.1"
    """Address to listen on."""
    listen_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0 for a free one."""
    address: str = "127.0.0.1:50051"
    """Address of the gRPC service: host:port, or a gRPC target such as `dns:///name:50051`."""
    ca: Path | None = None
    """PEM file with the trusted authorities for the service's certificate. Not set: no TLS to the service."""
    certificate: Path | None = None
    """PEM file with the page's certificate. Not set: the page is served over plain HTTP."""
    key: Path | None = None
    """PEM file with that certificate's key."""
    origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of other pages that may call the API from a browser, comma separated, such as https://tools.example."""
    token_header: str = ""
    """Header in which a reverse proxy sends the caller's bearer token, such as X-Forwarded-Access-Token (OIDC).
    Empty: callers send `Authorization` themselves."""
    metrics: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses of the metrics of service and workers, comma separated, such as http://127.0.0.1:9090/metrics, for the
    view of the system. Whoever may call the service sees them there. Empty: the view states that there are none."""
    max_message_bytes: Annotated[int, Field(ge=MIB)] = 32 * MIB
    """Largest request, in bytes."""
    max_body_bytes: Annotated[int, Field(ge=32 * MIB)] = 256 * MIB
    """Bytes of the bodies of all open requests; further ones get 429."""
    max_calls: Annotated[int, Field(ge=1)] = 500
    """Largest number of simultaneous requests; further ones get 503."""
    drain: Annotated[int, Field(ge=0)] = 10
    """Time for requests to end after SIGTERM, in seconds."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""

    @field_validator("metrics")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"{address!r} is no address of metrics; give http://HOST:PORT/metrics")
        return value

    @field_validator("origins", "metrics", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
