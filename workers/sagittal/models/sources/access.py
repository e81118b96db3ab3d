"""What models may be loaded from.

The operator's settings decide it alone: a model file or a registration names things inside these bounds, and cannot
widen them.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIB = 2**20
"""Bytes."""

STORE_SCHEMES = ("s3", "http", "https")
"""Schemes that a store's URL may have."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Store(_Strict):
    """A place that weights are fetched from; model files name it, never its URL."""

    url: str
    """Where it begins, such as `s3://bucket/models` or `https://models.example.com/v1`."""
    options: dict[str, Any] = {}
    """What its fsspec file system takes, such as `{"endpoint_url": "https://minio:9000"}` for S3."""

    @field_validator("url")
    @classmethod
    def _has_a_scheme(cls, url: str) -> str:
        if url.partition("://")[0] not in STORE_SCHEMES or "::" in url:
            raise ValueError(f"the URL of a store begins with one of {', '.join(f'{one}://' for one in STORE_SCHEMES)}")
        return url.rstrip("/")


class Server(_Strict):
    """A server that speaks the Open Inference Protocol v2 over gRPC; model files name it, never its address."""

    address: str = Field(min_length=1)
    """As gRPC takes it, such as `triton:8001` or `dns:///models.example.com:443`."""
    tls: bool = False
    """Whether the connection is encrypted and the server's certificate checked."""
    ca_file: Path | None = None
    """PEM file with the authorities that may sign its certificate. Not set: those of the system."""
    certificate_file: Path | None = None
    """PEM file with the certificate that the worker shows, for mutual TLS."""
    key_file: Path | None = None
    """PEM file with its key."""
    metadata: dict[str, str] = {}
    """Metadata of every call, such as `{"x-team": "radiology"}`. Names are in lower case."""
    metadata_files: dict[str, Path] = {}
    """Metadata whose values are read from files at each call, such as `{"authorization": "/secrets/bearer"}`: secrets
    stay out of the environment, and a renewed one is used at once."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Most calls in flight from this worker."""
    timeout: float = Field(default=10.0, gt=0)
    """Time that a call may take, in seconds."""
    attempts: int = Field(default=4, ge=1, le=20)
    """Most attempts at a call that failed for want of the server; see also the retry budget."""
    retry_budget: float = Field(default=10.0, ge=0)
    """Failures in a row after which calls are not attempted again: a server in trouble gets no more load by retries.
    Each success gives back a tenth."""

    @field_validator("metadata", "metadata_files")
    @classmethod
    def _lower_case(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name in metadata if name != name.lower() or name.startswith("grpc-")]:
            raise ValueError(f"{wrong[0]!r} is no name for metadata: use lower case, and nothing beginning with grpc-")
        return metadata


class Access(_Strict):
    """What models may be loaded from."""

    directories: tuple[Path, ...] = ()
    """Directories that weights and ONNX models may be read from. Not set: the one of the model file. JSON."""
    code_directories: tuple[Path, ...] = ()
    """Directories that TorchScript and `torch.export` files may be loaded from: loading them can run code. JSON."""
    factories: tuple[str, ...] = ("*",)
    """Python functions that may make a model, such as `["package.module:function"]`; `package.module:*` means all of a
    module, `*` all that a model file names, but none that is registered over the API. Entry points of the group
    `sagittal.models` may always. JSON."""
    stores: dict[str, Store] = {}
    """Stores that weights may be fetched from, by name, such as
    `{"models": {"url": "s3://bucket/models", "options": {}}}`. JSON."""
    servers: dict[str, Server] = {}
    """Servers that models may run on, by name, such as `{"triton": {"address": "triton:8001"}}`. JSON."""
    cache: Path | None = None
    """Directory in which fetched weights are kept, and the batch sizes that were found to suit models, so that a worker
    that starts again need not measure them. It must belong to the worker's user alone. Not set: `sagittal-weights`
    among the system's temporary files, and batch sizes are measured at each start."""
    max_mib: Annotated[int, Field(gt=0)] = 4096
    """Largest file of weights, in MiB, packed or unpacked."""

    def for_registrations(self) -> "Access":
        """Returns what models that are registered over the API may be loaded from: `*` is for files alone."""
        return self.model_copy(update={"factories": tuple(each for each in self.factories if each != "*")})

    @property
    def cache_directory(self) -> Path:
        """Directory in which fetched weights are kept."""
        return self.cache or Path(tempfile.gettempdir()) / "sagittal-weights"

    @property
    def max_bytes(self) -> int:
        """Largest file, in bytes."""
        return self.max_mib * MIB


EVERYTHING = Access(directories=(Path(), Path("/")), code_directories=(Path(), Path("/")))
"""For programs that trust what they load: every local file and every function, but no store and no server."""
