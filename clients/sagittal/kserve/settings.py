"""Settings of `sagittal-kserve`: each is an argument, as KServe gives them, and a variable with `SAGITTAL_KSERVE_`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagittal.process.logs import LogFormat, LogLevel
from sagittal.process.settings import read_settings

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

#: Host with an optional port; KServe gives `SERVICE-predictor.NAMESPACE`.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")

#: Ports of a predictor whose host has none: those of its Service, without and with TLS.
PLAIN_PORT, TLS_PORT = 80, 443


class KServeSettings(BaseSettings):
    """All settings of `sagittal-kserve`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_KSERVE_", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    model_name: Annotated[str, Field(validate_default=True)] = ""
    """Name of the model in the protocol. KServe gives the name of the InferenceService."""
    predictor_host: str = ""
    """Host of the predictor, with an optional port. KServe gives `SERVICE-predictor.NAMESPACE`, whose port is 80, or
    443 with `predictor_use_ssl`."""
    predictor_protocol: Literal["v2", "grpc-v2"] = "v2"
    """Protocol of the predictor: the Open Inference Protocol over HTTP (`v2`) or gRPC (`grpc-v2`). KServe does not give
    it."""
    predictor_use_ssl: bool = False
    """Whether to encrypt calls to the predictor. Only in a container with its own queue and worker."""
    predictor_ca: Path | None = None
    """PEM file with the authorities of the predictor's certificate. Not set: those of the system. Only in a container
    with its own queue and worker."""
    predictor_request_timeout_seconds: Seconds = 60.0
    """Timeout of a call to the predictor, in seconds. Only in a container with its own queue and worker."""
    predictor_concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    """Maximum number of simultaneous calls to the predictor. Only in a container with its own queue and worker."""
    http_port: Port = 8080
    """Port of the protocol over HTTP."""
    grpc_port: Port = 8081
    """Port of the protocol over gRPC. 0 disables it."""
    listen_host: str = "0.0.0.0"  # noqa: S104 - a container's port is reached from outside
    """Address to listen on."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Ignored. KServe gives it with `containerConcurrency`; one process serves all requests."""
    model_file: Path | None = None
    """Model file with one `[[models]]` table: preprocessing, labels, output and, in `source`, names and types of the
    predictor's tensors. Not set: 224 pixels, the mean and deviation of ImageNet, no labels."""
    method: str = "occlusion"
    """Method of requests that name none. Predictors have no gradients: `occlusion`, `rise`,
    `minimal-sufficient-explanations` and `structured-attention-graph` need none. `rise` needs the most evaluations."""
    wait: Seconds = 50.0
    """Maximum time until a response, in seconds. A job that takes longer continues, and the response has its id."""
    max_instances: Annotated[int, Field(ge=1, le=1000)] = 16
    """Maximum number of images in a request."""
    state: Path | None = None
    """Directory that keeps jobs while the container is away. Not set: jobs end with the container. Only in a container
    with its own queue and worker."""
    sagittal_address: str = ""
    """Address of an existing Sagittal, which then runs the jobs. Empty: this container runs a queue and a worker."""
    sagittal_model: str = ""
    """Model of that Sagittal to explain, "name" or "name@version". Empty: the predictor is registered there as
    `MODEL_NAME.NAMESPACE`, which needs the role `admin`."""
    sagittal_server: str = "kserve"
    """Server, in the settings of that Sagittal's workers, whose address has `{host}`."""
    sagittal_token_file: Path | None = None
    """File with the bearer token for that Sagittal."""
    sagittal_ca: Path | None = None
    """PEM file with the authorities of that Sagittal's certificate. Not set: no TLS."""
    drain: Annotated[int, Field(ge=0)] = 10
    """Time for responses to end after SIGTERM, in seconds. Requests that wait for a job are answered with its id."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""

    @field_validator("model_name")
    @classmethod
    def _has_a_name(cls, name: str) -> str:
        if not name or "/" in name:
            raise ValueError("name the model with --model_name, without a slash; KServe gives the InferenceService's")
        return name

    @field_validator("predictor_host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        if host and not _HOST.fullmatch(host):
            raise ValueError("give host or host:port, without a scheme, such as cats-predictor.models")
        return host

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.sagittal_model and not self.sagittal_address:
            raise ValueError("sagittal_model names a model of an existing Sagittal: give sagittal_address too")
        if not self.predictor_host and not self.sagittal_model:
            raise ValueError("name the predictor with --predictor_host; KServe gives it")
        return self

    @property
    def predictor_address(self) -> str:
        """Host and port of the predictor."""
        if ":" in self.predictor_host:
            return self.predictor_host
        return f"{self.predictor_host}:{TLS_PORT if self.predictor_use_ssl else PLAIN_PORT}"

    @property
    def namespace(self) -> str:
        """Namespace of the predictor; empty if its host has none."""
        return self.predictor_host.partition(":")[0].partition(".")[2].partition(".")[0]


def read_arguments(arguments: Sequence[str]) -> KServeSettings:
    """Returns the settings of a command line and the environment; arguments take precedence.

    Raises:
        UnusableSettings: a setting has an invalid value.
        SystemExit: an argument is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="sagittal-kserve", allow_abbrev=False, argument_default=argparse.SUPPRESS, description=__doc__
    )
    for name, field in KServeSettings.model_fields.items():
        parser.add_argument(f"--{name}", help=" ".join((field.description or "").split()).replace("%", "%%"))
    return read_settings(KServeSettings, **vars(parser.parse_args(arguments)))
