"""Model files: model entries (see `core.entries`) read from TOML.

[[models]]
name = "efficientnet-lite0"
version = "1"
source = { kind = "efficientnet-lite", variant = 0 }
labels = "imagenet-1k"

[models.preprocessing]
input_size = 224
fit = "squash"
interpolation = "bicubic"
mean = [0.498, 0.498, 0.498]
std = [0.502, 0.502, 0.502]
"""

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sagittal.core.entries import ModelEntry, Preprocessing

__all__ = ["InvalidModelFile", "ModelEntry", "Preprocessing", "parse_entries", "read_entries"]


class InvalidModelFile(Exception):
    """The model file cannot be read, or an entry is wrong; the message names the field."""


def read_entries(path: Path) -> list[ModelEntry]:
    """Reads a model file. Raises InvalidModelFile."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidModelFile(
            f"{path}: cannot be read: {error.strerror}. Set SAGITTAL_MODELS_FILE (the service: MODELS_FILES) to a file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidModelFile(f"{path}: is not TOML: {error}") from error
    return parse_entries(document, str(path))


def parse_entries(document: dict[str, Any], where: str) -> list[ModelEntry]:
    """Returns the entries of a parsed model file. Raises InvalidModelFile."""
    tables = document.get("models")
    if not isinstance(tables, list) or not tables:
        raise InvalidModelFile(f"{where}: has no [[models]] table; add one for each model")
    entries = []
    for index, table in enumerate(tables):
        try:
            entries.append(ModelEntry.model_validate(table))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in ("models", index, *first["loc"]))
            raise InvalidModelFile(f"{where}: {field}: {first['msg']}") from error
    _check_apart(entries, where)
    return entries


def _check_apart(entries: list[ModelEntry], where: str) -> None:
    keys = Counter(entry.key for entry in entries)
    if twice := sorted(key for key, times in keys.items() if times > 1):
        raise InvalidModelFile(f"{where}: registered twice: {', '.join(f'{n} version {v}' for n, v in twice)}")
    latest = Counter(entry.name for entry in entries if entry.latest)
    if several := sorted(name for name, times in latest.items() if times > 1):
        raise InvalidModelFile(f"{where}: several versions say latest = true: {', '.join(several)}; one may")
