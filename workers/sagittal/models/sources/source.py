"""The base class of sources: settings, and a loader."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from sagittal.engine.optimise import Step
from sagittal.models.sources.access import Access


class ModelUnavailable(Exception):
    """A model cannot be loaded; the message states the reason and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Sourced:
    """The result of a source."""

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes). A `BlackBox` has neither gradients nor layers."""
    notes: tuple[Step, ...] = ()
    """Steps of the source, such as a conversion, or why it was skipped; shown by `GetModel`."""


class Source(BaseModel, ABC):
    """The settings of one kind of source, given in model files beside `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @abstractmethod
    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""


def need(module: str, *, extra: str) -> ModuleType:
    """Imports a module of an optional extra. Raises ModelUnavailable with the name of the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelUnavailable(f"{error.name} is not installed; run pip install 'sagittal[{extra}]'") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes random weights depend on a seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
