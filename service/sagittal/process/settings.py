"""Reads settings from the environment; errors name each wrong variable, its value and what it must be."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsError

S = TypeVar("S", bound=BaseSettings)

#: Parts of names whose values may be secret; errors do not show them.
SECRET = ("PASSWORD", "TOKENS", "HEADERS", "URL", "METADATA", "OPTIONS", "STORES")


class UnusableSettings(Exception):
    """Settings with which a program cannot start; the message names each of them."""


def read_settings(kind: type[S], **arguments: Any) -> S:
    """Reads settings from the environment, which arguments of a command line replace. Raises UnusableSettings."""
    prefix = kind.model_config["env_prefix"]
    try:
        return kind(**arguments)
    except ValidationError as error:
        faults = [_fault(fault, prefix) for fault in error.errors(include_url=False)]
    except SettingsError as error:
        faults = list(_unparsed(kind, prefix)) or [str(error)]
    raise UnusableSettings("invalid settings:\n" + "\n".join(f"  {fault}" for fault in faults))


def _fault(fault: Mapping[str, Any], prefix: str) -> str:
    if not fault["loc"]:  # of several settings, which the message names
        return str(fault["msg"]).removeprefix("Value error, ")
    name = prefix + "__".join(str(part) for part in fault["loc"]).upper()
    if fault["type"] == "extra_forbidden":
        return f"{name}: unknown setting; docs/operations.md lists all settings"
    value = fault["input"]
    shown = isinstance(value, str | int | float) and not any(part in name for part in SECRET)
    return f"{name}: {fault['msg'].removeprefix('Value error, ')}" + (f"; it is {value!r}" if shown else "")


def _unparsed(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields an error for each variable that must be JSON and is not."""
    for variable, value in os.environ.items():
        if not variable.upper().startswith(prefix) or not _is_structure(kind, variable[len(prefix) :].lower()):
            continue
        try:
            json.loads(value)
        except ValueError as error:
            yield f'{variable}: must be JSON, such as ["a", "b"] or {{"name": 1}} ({error})'


def _is_structure(kind: type[BaseModel], name: str) -> bool:
    """Returns whether a setting is a list, a map or a group, which is JSON in the environment."""
    first, _, rest = name.partition("__")
    field = kind.model_fields.get(first)
    if field is None or NoDecode in field.metadata:
        return False
    group = field.annotation
    if isinstance(group, type) and issubclass(group, BaseModel):
        return not rest or _is_structure(group, rest)
    return get_origin(group) in (tuple, dict, frozenset)
