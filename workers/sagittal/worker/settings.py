"""Settings of a worker, from environment variables that begin with `SAGITTAL_` (`__` between levels)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sagittal.core.images import ImageLimits
from sagittal.models.sources import Access
from sagittal.process.logs import LogFormat, LogLevel, own_name
from sagittal.process.tracing import TracingSettings
from sagittal.queue.settings import QueueSettings
from sagittal.worker.concepts.store import ConceptSettings
from sagittal.worker.devices import MIB, usable_bytes
from sagittal.worker.hosting.registry import Selection

CEILING_SHARE = 0.9
"""Share of the available memory that a worker uses if no ceiling is set."""

Names = Annotated[tuple[str, ...], NoDecode]
Tags = Annotated[dict[str, str], NoDecode]


class WorkerSettings(BaseSettings):
    """All settings of a worker. `SAGITTAL_QUEUE__URL` sets `queue.url`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True, use_attribute_docstrings=True
    )

    models_file: Path | None = Path("models.toml")
    """TOML file with models to register. Empty: this worker registers none and serves models that others registered."""
    serve: Names = ()
    """Registered models to serve, comma separated: names or NAME@VERSION, with `*` as a wildcard. Empty: those of
    `models_file` and those registered over the API."""
    serve_tags: Tags = {}
    """Tags that served models must have, as `key=value`, comma separated."""
    worker_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", default_factory=own_name)]
    """Name of this worker, unique among running workers. By default host and process."""
    device: str = ""
    """Device, such as `cpu` or `cuda:1`. Several, comma separated, or `cuda:*` for every GPU: each has its own process,
    and one port serves metrics and probes for all. Empty: CUDA if available."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Number of PyTorch's CPU threads. 0: the number of processors that this process may use, by its affinity and by
    the CPU quota of its control groups (a container's limit), rounded up."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Maximum number of masked images in a batch. 0: chosen for the device."""
    model_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Maximum memory of all loaded models' weights and of the largest batch, in MiB. Beyond it, the least recently used
    idle model is unloaded until a job needs it. A model that no worker has loaded yet may exceed it briefly. 0: no
    limit."""
    score_memo_mib: Annotated[int, Field(ge=0)] = 64
    """Memory for the scores of masked images that jobs on the same image and baseline share, in MiB per loaded model.
    Results differ at most by rounding, and not at all for a model whose `equal-rows` is applied. 0: disabled."""
    max_jobs: Annotated[int, Field(ge=1)] = 8
    """Maximum number of concurrent jobs."""
    sources: Access = Access()
    """Sources that models may be loaded from."""
    metrics_host: str = "127.0.0.1"
    """Listen address of `/metrics`."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9091
    """Port of `/metrics`. 0 disables it."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""
    queue: QueueSettings = QueueSettings()
    """The queue on Redis."""
    tracing: TracingSettings = TracingSettings()
    """Export of traces."""
    max_image_pixels: Annotated[int, Field(gt=0)] = 64_000_000
    """Maximum number of pixels of an image, width times height."""
    max_image_memory: Annotated[int, Field(ge=32 * 2**20)] = 256 * 2**20
    """Memory limit of the process that decodes an image, in bytes; see the service's `images.decode_memory`."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Minimum time between two checkpoints of a job, from which another worker can resume, in seconds."""
    concepts: ConceptSettings = ConceptSettings()
    """Concept sets."""
    announce_seconds: Annotated[float, Field(gt=0)] = 3.0
    """Interval of this worker's announcements, in seconds; it is removed after five missed ones."""
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Maximum time of a step on the device, in seconds. A process whose step takes longer hangs: it is killed and
    restarted, and its jobs go to other workers."""
    load_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Maximum time to load a model, in seconds. A process that takes longer is killed."""
    load_attempts: Annotated[int, Field(ge=1)] = 3
    """Number of loads of a model's version that may kill its process, or hang, before the version is quarantined.
    `GetModel` reports it, and it is not loaded again until `LoadModel` or `UpdateModel` is called."""
    memory_ceiling_mib: Annotated[int, Field(ge=0)] = 0
    """Memory of this worker's processes, in MiB, at which a process releases its jobs and restarts, before the kernel
    kills it. The processes of several devices share it. 0: nine tenths of the control group's limit, or of the
    machine's memory."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Time for running jobs to end after SIGTERM before they are released, in seconds."""

    @field_validator("models_file", mode="before")
    @classmethod
    def _no_file(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("serve", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value) if isinstance(value, str) else value

    @field_validator("serve_tags", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if wrong := [part for part in _parts(value) if not part.partition("=")[2]]:
            raise ValueError(f"{wrong[0]!r} is no tag; give key=value")
        return {part.partition("=")[0].strip(): part.partition("=")[2].strip() for part in _parts(value)}

    def selection(self) -> Selection:
        """Returns the models to serve."""
        return Selection(names=self.serve, tags=self.serve_tags)

    def memory_ceiling_bytes(self) -> int:
        """Returns the memory at which a process starts again."""
        return self.memory_ceiling_mib * MIB or int(usable_bytes() * CEILING_SHARE)

    def image_limits(self) -> ImageLimits:
        """Returns the limits of images."""
        return ImageLimits(max_pixels=self.max_image_pixels, memory=self.max_image_memory)

    def access(self) -> Access:
        """Returns the sources that models may be loaded from, by default the directory of the model file."""
        if self.sources.directories or self.models_file is None:
            return self.sources
        return self.sources.model_copy(update={"directories": (self.models_file.absolute().parent,)})


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
