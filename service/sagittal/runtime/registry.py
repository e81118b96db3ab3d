"""The model registry: what can be explained, and which workers can do it."""

from collections.abc import Sequence
from typing import Protocol

from sagittal.v1 import model_pb2


class ModelRegistry(Protocol):
    """The service's side (asyncio). Models survive the workers that published them."""

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version, with the state of each live worker."""
        ...

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest. Raises UnknownModel, naming those that exist."""
        ...

    async def register(self, model: model_pb2.Model) -> None:
        """Registers a version of a model, or replaces it; the first version of a name becomes its latest."""
        ...


class WorkerRegistry(Protocol):
    """A worker's side (blocking)."""

    def publish(self, model: model_pb2.Model) -> None:
        """Registers a model as this worker loaded it: digest, labels, capabilities, methods."""
        ...

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Says how this worker stands to (name, version) models; forgotten after `ttl` seconds without a repetition."""
        ...

    def withdraw(self, worker: str) -> None:
        """Forgets this worker at once."""
        ...
