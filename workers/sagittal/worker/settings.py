"""Settings of a worker, from environment variables that begin with `SAGITTAL_` (`__` between levels)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagittal.core.images import ImageLimits
from sagittal.models.sources import Access
from sagittal.runtime.settings import QueueSettings
from sagittal.runtime.telemetry import LogFormat, LogLevel, own_name
from sagittal.runtime.tracing import TracingSettings


class WorkerSettings(BaseSettings):
    """All settings of a worker. `SAGITTAL_QUEUE__URL` sets `queue.url`."""

    model_config = SettingsConfigDict(
        env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True, use_attribute_docstrings=True
    )

    models_file: Path = Path("models.toml")
    """TOML file with the models to serve."""
    worker_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", default_factory=own_name)]
    """Name of this worker, unique among those that run. Not set: host and process."""
    device: str = ""
    """Device to run on, such as `cpu` or `cuda:1`. Empty: CUDA where there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that PyTorch computes with on the CPU. 0: one for each processor that may be used."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Most masked images in a batch. 0: chosen for the device."""
    model_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Most memory of all loaded models' weights, in MiB: past it, the least recently used idle model is unloaded until
    a job asks for it. A model that is loaded for the first time comes on top for a moment. 0: no bound."""
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
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Least time between two checkpoints of a job, from which another worker can go on, in seconds."""
    announce_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Time between two announcements that this worker is there, in seconds; it is forgotten after five of them."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Time that running jobs have to end after SIGTERM before they are handed back, in seconds."""

    def image_limits(self) -> ImageLimits:
        """Returns the limits of pictures."""
        return ImageLimits(max_pixels=self.max_image_pixels)

    def access(self) -> Access:
        """Returns what models may be loaded from: the directory of the model file where none is set."""
        if self.sources.directories:
            return self.sources
        return self.sources.model_copy(update={"directories": (self.models_file.absolute().parent,)})
