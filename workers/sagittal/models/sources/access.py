"""Limits of the sources that models may be loaded from.

Only the operator's settings define them: a model file or a registration names things within these limits, and cannot
widen them.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIB = 2**20
"""Bytes."""

STORE_SCHEMES = ("s3", "http", "https")
"""Valid schemes of a store's URL."""


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
    """A server of the Open Inference Protocol v2 over gRPC; model files refer to it by name, never by address."""

    address: str = Field(min_length=1)
    """Address in gRPC's form, such as `triton:8001` or `dns:///models.example.com:443`."""
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
