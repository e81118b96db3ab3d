"""Optional packages, imported when they are used."""

from importlib import import_module
from typing import Any

from sagittal.client.errors import SagittalError


class MissingExtra(SagittalError, ImportError):
    """A required optional package is not installed."""

    reason = "MISSING_EXTRA"


def import_extra(module: str, extra: str = "notebook") -> Any:
    """Returns a module of an optional package. Raises MissingExtra, which names its extra."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        text = f"this requires {package}, which is not installed; run pip install 'sagittal[{extra}]'"
        raise MissingExtra(text) from error
