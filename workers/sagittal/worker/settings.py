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
"""Share of the memory that there is, which a worker takes where no ceiling is set."""

Names = Annotated[tuple[str, ...], NoDecode]
Tags = Annotated[dict[str, str], NoDecode]


class WorkerSettings(BaseSettings):
    """All settings of a worker. `SAGITTAL_QUEUE__URL` sets `queue.url`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True, use_attribute_docstrings=True
    )

    models_file: Path | None = Path("models.toml")
    """TOML file with models to register. Empty: none, so that this worker serves what others registered."""
    serve: Names = ()
    """Registered models to serve, comma separated: names or NAME@VERSION, `*` for any part. Empty: those of
    `models_file` and those registered over the API."""
    serve_tags: Tags = {}
    """Tags that a model must have to be served, as `key=value`, comma separated."""
    worker_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", default_factory=own_name)]
    """Name of this worker, unique among those that run. Not set: host and process."""
    device: str = ""
    """Device to run on, such as `cpu` or `cuda:1`. Several, comma separated, or `cuda:*` for each GPU: a process
    runs for each, and one port of metrics and probes answers for all. Empty: CUDA where there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that PyTorch computes with on the CPU. 0: one for each processor that this process may use, by
    its affinity and by the CPU quota of its control groups (a container's limit), rounded up."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Most masked images in a batch. 0: chosen for the device."""
    model_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Most memory of all loaded models' weights and of the largest batch, in MiB: past it, the least recently used idle
    model is unloaded until a job asks for it. A model that no worker has loaded yet comes on top for a moment. 0: no
    bound."""
    score_memo_mib: Annotated[int, Field(ge=0)] = 64
    """Memory for the scores of masked images that jobs on the same picture and baseline share, in MiB for each loaded
    model. Results depend on it by rounding at most, and not at all for a model whose `equal-rows` is applied. 0: none
    is shared."""
    max_jobs: Annotated[int, Field(ge=1)] = 8
    """Jobs that run at the same time."""
    sources: Access = Access()
    """What models may be loaded from."""
    metrics_host: str = "127.0.0.1"
    """Address that `/metrics` listens on."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9091
    """Port of `/metrics`. 0 switches it off."""
    log_format: LogFormat = "console"
    """`console` for people, `json` for machines."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`."""
    queue: QueueSettings = QueueSettings()
    """The queue on Redis."""
    tracing: TracingSettings = TracingSettings()
    """Where traces go."""
    max_image_pixels: Annotated[int, Field(gt=0)] = 64_000_000
    """Width times height of the largest picture."""
    max_image_memory: Annotated[int, Field(ge=32 * 2**20)] = 256 * 2**20
    """Bytes that decoding one image may take, in a process of its own; see the service's `images.decode_memory`."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Least time between two checkpoints of a job, from which another worker can go on, in seconds."""
    concepts: ConceptSettings = ConceptSettings()
    """Concept sets."""
    announce_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Time between two announcements that this worker is there, in seconds; it is forgotten after five of them."""
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Time that a step on the device may take, in seconds. The process of one that takes longer hangs: it is killed and
    started again, and its jobs go to other workers."""
    load_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time that loading a model may take, in seconds. A process that takes longer is killed."""
    load_attempts: Annotated[int, Field(ge=1)] = 3
    """Times that loading a version of a model may kill its process, or hang, before the version is quarantined:
    `GetModel` says so, and it is not loaded until `LoadModel` or `UpdateModel` asks for it."""
    memory_ceiling_mib: Annotated[int, Field(ge=0)] = 0
    """Memory of this worker's processes, in MiB, at which a process hands its jobs back and starts again, before the
    kernel kills it. Those of several devices share it. 0: nine tenths of the control group's limit, or of the memory of
    the machine."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Time that running jobs have to end after SIGTERM before they are handed back, in seconds."""

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
        """Returns the limits of pictures."""
        return ImageLimits(max_pixels=self.max_image_pixels, memory=self.max_image_memory)

    def access(self) -> Access:
        """Returns what models may be loaded from: the directory of the model file where none is set."""
        if self.sources.directories or self.models_file is None:
            return self.sources
        return self.sources.model_copy(update={"directories": (self.models_file.absolute().parent,)})


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
