"""Packages that only some of the client needs, imported when they are used."""

from importlib import import_module
from typing import Any

from sagittal.client.errors import SagittalError


class MissingExtra(SagittalError, ImportError):
    """A package is not installed that what was asked for needs."""

    reason = "MISSING_EXTRA"


def import_extra(module: str, extra: str = "notebook") -> Any:
    """Returns a module of an optional package. Raises MissingExtra, which names the extra that brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        text = f"this needs {package}, which is not installed: pip install 'sagittal[{extra}]'"
        raise MissingExtra(text) from error
