"""The model registry: what can be explained, and which workers can do it.

A version of a model has two halves. Its declaration says what it is made of: it comes from a worker's model file or
over the API, and every change gives it a new revision. What was found about it comes from the workers that loaded that
revision. `core.declarations.DECLARED` names the fields of the first half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sagittal.v1 import model_pb2

Wish = Literal["", "load", "unload"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Registration:
    """A version of a model, as a worker sees it."""

    model: model_pb2.Model
    """Both halves, with the state of each live worker."""
    declaration: model_pb2.Model | None = None
    """The declared half alone; None where a worker published what nobody registered."""
    wish: Wish = ""
    """What LoadModel or UnloadModel asked for last."""
    turn: int = 0
    """Tells that wish from the ones before it."""


class ModelRegistry(Protocol):
    """The service's side (asyncio). Models survive the workers that published them."""

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version, with the state of each live worker."""
        ...

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest. Raises UnknownModel, naming those that exist."""
        ...

    async def epoch(self) -> str:
        """Returns what tells this registry from one that was lost: another value once its data are gone."""
        ...

    async def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; False if the API has registered another content, which holds."""
        ...

    async def register(self, declaration: model_pb2.Model, *, latest: bool = False) -> None:
        """Registers a version of a model; the first version of a name becomes its latest.

        Raises ModelExists where the version is registered with another content.
        """
        ...

    async def update(self, declaration: model_pb2.Model, *, revision: int | None = None, latest: bool = False) -> None:
        """Replaces a declaration; one that changes takes away what was found of the one before.

        Raises UnknownModel, and FailedPrecondition where the registered revision is not the one that is given.
        """
        ...

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version. Raises UnknownModel, and FailedPrecondition for the latest of several."""
        ...

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Asks workers to load or unload a model; an empty version means the latest. Raises UnknownModel."""
        ...


class WorkerRegistry(Protocol):
    """A worker's side (blocking)."""

    def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; False where the API has registered another content, which holds."""
        ...

    def changes(self) -> int:
        """Returns a number that grows whenever a declaration or a wish changes."""
        ...

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        ...

    def publish(self, model: model_pb2.Model) -> bool:
        """Says what this worker found of a model's `revision`; False where that is no longer the registered one."""
        ...

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Says how this worker stands to (name, version) models; forgotten after `ttl` seconds without a repetition."""
        ...

    def withdraw(self, worker: str) -> None:
        """Forgets this worker at once."""
        ...
