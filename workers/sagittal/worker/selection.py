"""Which of the registered models a worker serves: by name, by tags, or those that concern it anyhow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from sagittal.v1 import model_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of models. An empty one is of those in the worker's own file and of those registered over the API."""

    names: tuple[str, ...] = ()
    """Patterns of `NAME` or `NAME@VERSION`, such as `resnet*`; one must fit."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags that a model must have."""

    def serves(self, model: model_pb2.Model, *, own: bool) -> bool:
        """Whether a registered model is served; `own` says that it is in this worker's file."""
        if not self.names and not self.tags:
            return own or model.origin == model_pb2.MODEL_ORIGIN_API
        return self._named(model) and all(model.tags.get(tag) == value for tag, value in self.tags.items())

    def _named(self, model: model_pb2.Model) -> bool:
        spellings = (model.name, f"{model.name}@{model.version}")
        return not self.names or any(fnmatchcase(name, pattern) for pattern in self.names for name in spellings)
