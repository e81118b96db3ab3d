"""Models constructed by Python functions that the operator installed."""

import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from pydantic import Field
from torch import nn

from sagittal.models.sources.access import Access
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced
from sagittal.models.sources.weights import Weights, load_weights

GROUP = "sagittal.models"
"""Group of entry points through which installed packages provide models."""


class Python(Source):
    """A module constructed by an installed function, with weights from a file if one is named."""

    factory: str
    """Name of an entry point of the group `sagittal.models`, or `package.module:function` if the operator's settings
    list it."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Arguments of the function."""
    weights: Weights | None = None
    """File of weights. By default those of the function's module."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        function = find_factory(self.factory, access)
        module = function(**self.arguments)
        if not isinstance(module, nn.Module):
            raise ModelUnavailable(
                f"source.factory {self.factory!r} returned {type(module).__name__}, not a torch module"
            )
        if self.weights is not None:
            load_weights(module, self.weights, access)
        return Sourced(module)


def find_factory(name: str, access: Access) -> Callable[..., object]:
    """Returns the allowed function of a name. Raises ModelUnavailable before it imports any other."""
    module_name, colon, attribute = name.partition(":")
    try:
        if not colon:
            return _entry_point(name)
        if not _is_listed(name, access):
            raise ModelUnavailable(
                f"source.factory {name!r} may not be called: SAGITTAL_SOURCES__FACTORIES lists "
                f"{', '.join(access.factories) or 'nothing'}; list it there, or install it as an entry point of {GROUP}"
            )
        function: Callable[..., object] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelUnavailable(f"source.factory {name!r} cannot be imported: {error}") from error
    return function


def _is_listed(name: str, access: Access) -> bool:
    return not {"*", name, f"{name.partition(':')[0]}:*"}.isdisjoint(access.factories)


def _entry_point(name: str) -> Callable[..., object]:
    found = metadata.entry_points(group=GROUP)
    if name not in found.names:
        raise ModelUnavailable(
            f"source.factory {name!r} is no entry point of the group {GROUP}, which has "
            f"{', '.join(sorted(found.names)) or 'none'}; functions are named package.module:function"
        )
    function: Callable[..., object] = found[name].load()
    return function
