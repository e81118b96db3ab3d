"""Limits of the sources that models may be loaded from.

Only the operator's settings define them: a model file or a registration names things within these limits, and cannot
widen them.
"""

import re
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MIB = 2**20
"""Bytes."""

STORE_SCHEMES = ("s3", "http", "https")
"""Valid schemes of a store's URL."""

HOST = "{host}"
"""Part of a server's address that a model names."""

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[0-9]{1,5}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Store(_Strict):
    """A store of weights; model files refer to it by name, never by URL."""

    url: str
    """URL prefix, such as `s3://bucket/models` or `https://models.example.com/v1`."""
    options: dict[str, Any] = {}
    """Options of its fsspec file system, such as `{"endpoint_url": "https://minio:9000"}` for S3."""

    @field_validator("url")
    @classmethod
    def _has_a_scheme(cls, url: str) -> str:
        if url.partition("://")[0] not in STORE_SCHEMES or "::" in url:
            raise ValueError(
                f"the URL of a store must begin with one of {', '.join(f'{one}://' for one in STORE_SCHEMES)}"
            )
        return url.rstrip("/")


class Server(_Strict):
    """A server of the Open Inference Protocol v2; model files refer to it by name, never by address."""

    address: str = Field(min_length=1)
    """Address: `host:port`, such as `triton:8001`, or with `protocol` `grpc` another form of gRPC's, such as
    `dns:///models.example.com:443`. `{host}` stands for the `source.host` of a model, which `hosts` must allow."""
    hosts: tuple[str, ...] = ()
    """Patterns of the hosts that models may name for `{host}`, such as `["*-predictor.models:80"]`; `*` stands for any
    text. They are the predictors of many InferenceServices of KServe, for example."""
    protocol: Literal["grpc", "http"] = "grpc"
    """The form of the Open Inference Protocol. Over HTTP, tensors are sent as binary data if the server's metadata has
    the extension `binary_tensor_data`, and otherwise as JSON."""
    tls: bool = False
    """Whether to encrypt the connection and check the server's certificate."""
    ca_file: Path | None = None
    """PEM file with the authorities that may sign its certificate. By default those of the system."""
    certificate_file: Path | None = None
    """PEM file with the worker's client certificate, for mutual TLS."""
    key_file: Path | None = None
    """PEM file with the key of the client certificate."""
    metadata: dict[str, str] = {}
    """Metadata of every call, such as `{"x-team": "radiology"}`. Names must be lower case."""
    metadata_files: dict[str, Path] = {}
    """Metadata whose values are read from files at each call, such as `{"authorization": "/secrets/bearer"}`. Secrets
    stay out of the environment, and a renewed secret takes effect immediately."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Maximum number of concurrent calls from this worker."""
    timeout: float = Field(default=10.0, gt=0)
    """Timeout of a call, in seconds."""
    attempts: int = Field(default=4, ge=1, le=20)
    """Maximum number of attempts at a call while the server is unavailable; see also the retry budget."""
    retry_budget: float = Field(default=10.0, ge=0)
    """Number of consecutive failures after which calls are not retried, so that retries do not overload a failing
    server. Each success returns a tenth."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if HOST in self.address and not self.hosts:
            raise ValueError(f"address has {HOST}: give hosts, the patterns of the hosts that models may name")
        if self.protocol == "http" and not _HOST_AND_PORT.fullmatch(self.address.replace(HOST, "host:1")):
            raise ValueError(f"the address {self.address!r} is not host:port, which protocol http needs")
        return self

    def at(self, host: str) -> "Server":
        """Returns the server at the `source.host` of a model. Raises ValueError if `hosts` does not allow it."""
        if HOST not in self.address:
            if host:
                raise ValueError(f"the server's address has no {HOST}; leave out source.host")
            return self
        if not _HOST_AND_PORT.fullmatch(host) or not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            raise ValueError(f"{host!r} is not among the server's hosts: {', '.join(self.hosts)}")
        return self.model_copy(update={"address": self.address.replace(HOST, host)})

    @field_validator("metadata", "metadata_files")
    @classmethod
    def _lower_case(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name in metadata if name != name.lower() or name.startswith("grpc-")]:
            raise ValueError(f"{wrong[0]!r} is no metadata name: use lower case, and no name that begins with grpc-")
        return metadata


class Access(_Strict):
    """Sources that models may be loaded from."""

    directories: tuple[Path, ...] = ()
    """Directories of weights and ONNX models. By default the directory of the model file. JSON."""
    code_directories: tuple[Path, ...] = ()
    """Directories of TorchScript and `torch.export` files: loading such files can run code. JSON."""
    factories: tuple[str, ...] = ("*",)
    """Python functions that may construct a model, such as `["package.module:function"]`. `package.module:*` allows all
    functions of a module. `*` allows every function that a model file names, but none of a registration over the API.
    Entry points of the group `sagittal.models` are always allowed. JSON."""
    stores: dict[str, Store] = {}
    """Stores of weights by name, such as `{"models": {"url": "s3://bucket/models", "options": {}}}`. JSON."""
    servers: dict[str, Server] = {}
    """Servers of remote models by name, such as `{"triton": {"address": "triton:8001"}}`. JSON."""
    cache: Path | None = None
    """Directory for fetched weights and measured batch sizes, so that a worker that restarts does not measure again.
    Only the worker's user may have write access. By default weights are in `sagittal-weights` in the system's temporary
    directory, and batch sizes are measured at each start."""
    max_mib: Annotated[int, Field(gt=0)] = 4096
    """Maximum size of a file of weights, in MiB, packed and unpacked."""

    def for_registrations(self) -> "Access":
        """Returns the limits of models registered over the API: `*` is for model files only."""
        return self.model_copy(update={"factories": tuple(each for each in self.factories if each != "*")})

    @property
    def cache_directory(self) -> Path:
        """Directory of fetched weights."""
        return self.cache or Path(tempfile.gettempdir()) / "sagittal-weights"

    @property
    def max_bytes(self) -> int:
        """Maximum size of a file, in bytes."""
        return self.max_mib * MIB


EVERYTHING = Access(directories=(Path(), Path("/")), code_directories=(Path(), Path("/")))
"""Limits for programs that trust what they load: every local file and function, but no store and no server."""
