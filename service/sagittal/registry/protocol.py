"""The model registry: which models can be explained, and which workers serve them.

A model version has two halves. The declaration is what was registered, from a worker's model file or over the API; each
change gives it a new revision. The findings come from workers that loaded that revision. `core.models.DECLARED` lists
the fields of the declaration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sagittal.v1 import model_pb2

Wish = Literal["", "load", "unload"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Registration:
    """A model version as a worker sees it."""

    model: model_pb2.Model
    """Declaration and findings, with the state of each live worker."""
    declaration: model_pb2.Model | None = None
    """The declaration alone; None if a worker published a model that nobody registered."""
    wish: Wish = ""
    """The latest request by LoadModel or UnloadModel."""
    turn: int = 0
    """Number that distinguishes this request from earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRecord:
    """The canary of a model: the version on trial, and the trial."""

    version: str
    canary: model_pb2.Canary


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """Jobs of a model version that have ended on a worker, without cancelled ones and mistakes of callers."""

    name: str
    version: str
    completed: int = 0
    failed: int = 0
    scored: int = 0
    """Explanations with an insertion AUC."""
    insertion: float = 0.0
    """Sum of their insertion AUCs."""


class ModelRegistry(Protocol):
    """The service's side (asyncio). Models remain when the workers that published them are gone."""

    async def models(self) -> Sequence[model_pb2.Model]:
        """Returns every registered model, by name and version, with the state of each live worker."""
        ...

    async def model(self, name: str, version: str = "") -> model_pb2.Model:
        """Returns one model; an empty version means the latest. Raises UnknownModel, naming those that exist."""
        ...

    async def epoch(self) -> str:
        """Returns an identifier of this registry's data; it changes if the data are lost."""
        ...

    async def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; returns False if the API registered other content, which stays."""
        ...

    async def register(self, declaration: model_pb2.Model, *, latest: bool = False) -> None:
        """Registers a model version; the first version of a name becomes its latest.

        Raises ModelExists if the version is registered with different content.
        """
        ...

    async def update(self, declaration: model_pb2.Model, *, revision: int | None = None, latest: bool = False) -> None:
        """Replaces a declaration; if it changes, the findings about the previous one are deleted.

        Raises UnknownModel, or FailedPrecondition if `revision` is not the registered one.
        """
        ...

    async def unregister(self, name: str, version: str) -> None:
        """Removes a version. Raises UnknownModel, or FailedPrecondition for the latest of several."""
        ...

    async def wish(self, name: str, version: str, wish: Wish) -> None:
        """Asks workers to load or unload a model; an empty version means the latest. Raises UnknownModel."""
        ...

    async def canaries(self) -> Mapping[str, CanaryRecord]:
        """Returns the canary of each model that has one, by name."""
        ...

    async def set_canary(self, name: str, version: str, canary: model_pb2.Canary | None) -> None:
        """Starts a canary with complete settings, in place of the model's earlier one; None ends it.

        Raises UnknownModel, or FailedPrecondition for the latest version.
        """
        ...


class WorkerRegistry(Protocol):
    """A worker's side (blocking)."""

    def declare(self, declaration: model_pb2.Model, *, latest: bool = False) -> bool:
        """Registers a version from a model file; returns False if the API registered other content, which stays."""
        ...

    def changes(self) -> int:
        """Returns a number that increases with each change of a declaration or a wish."""
        ...

    def registrations(self) -> Sequence[Registration]:
        """Returns every registered model, by name and version."""
        ...

    def publish(self, model: model_pb2.Model) -> bool:
        """Publishes this worker's findings about a model's `revision`; False if it is not the registered one."""
        ...

    def announce(self, worker: str, models: Sequence[tuple[str, str, model_pb2.WorkerModel]], *, ttl: float) -> None:
        """Announces the state of (name, version) models on this worker for `ttl` seconds; repeat it to keep it."""
        ...

    def report(self, worker: str, moment: int, outcomes: Outcomes) -> str:
        """Counts ended jobs for the canary of their model, if it has one.

        Returns why this report, made at `moment` in nanoseconds, made the registry roll the canary back; otherwise "".
        """
        ...

    def withdraw(self, worker: str) -> None:
        """Removes this worker immediately."""
        ...
