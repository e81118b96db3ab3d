"""What every source is: settings, and a way from them to a model."""

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
    """A model cannot be loaded; the message says why and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Sourced:
    """What a source gave."""

    module: nn.Module
    """Maps (n, 3, height, width) to (n, classes). An `BlackBox` one gives neither gradients nor layers."""
    notes: tuple[Step, ...] = ()
    """What was done on the way, for `GetModel`: such as a conversion, or why it was left out."""


class Source(BaseModel, ABC):
    """The settings of one kind of source, which model files give beside `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @abstractmethod
    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""


def need(module: str, *, extra: str) -> ModuleType:
    """Imports a module of an optional extra. Raises ModelUnavailable, naming the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelUnavailable(f"{error.name} is not installed: pip install 'sagittal[{extra}]'") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes random weights come from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
