"""Watches that the registry keeps its models: registers those of model files, and reports what a lost registry held."""

from collections.abc import Sequence

import structlog

from sagittal.core.declarations import declaration_of
from sagittal.core.entries import ModelEntry
from sagittal.runtime.registry import ModelRegistry
from sagittal.server.metrics import ServiceMetrics
from sagittal.v1 import model_pb2

_log = structlog.get_logger(__name__)


class RegistryWatch:
    """Looks whether the registry is the one that it was."""

    def __init__(self, registry: ModelRegistry, entries: Sequence[ModelEntry], metrics: ServiceMetrics) -> None:
        """Looks at nothing yet.

        Args:
            registry: What is watched.
            entries: Models of files, to register when the registry is new: their jobs may come before their workers.
            metrics: Where a loss is counted.
        """
        self._registry = registry
        self._entries = entries
        self._metrics = metrics
        self._epoch = ""
        self._by_api: frozenset[str] = frozenset()

    async def look(self) -> Sequence[model_pb2.Model]:
        """Returns every model, after it has registered those of files if the registry is new or lost its data."""
        epoch = await self._registry.epoch()
        if epoch != self._epoch:
            if self._epoch:
                self._report()
            for entry in self._entries:
                await self._registry.declare(declaration_of(entry), latest=entry.latest)
            self._epoch = epoch
        models = await self._registry.models()
        self._by_api = frozenset(
            f"{model.name} {model.version}" for model in models if model.origin == model_pb2.MODEL_ORIGIN_API
        )
        return models

    def _report(self) -> None:
        self._metrics.registry_lost.inc()
        _log.error(
            "registry-emptied",
            models_gone=sorted(self._by_api),
            reason="Redis no longer has the registry that it had: it was flushed, or replaced, or lost its disk",
            remedy="register these models again; those of model files come back by themselves",
        )
