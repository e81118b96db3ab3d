"""Model entries: what an operator writes to register a model, read from TOML.

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
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sagittal.engine.evaluator import Output

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class InvalidModelFile(Exception):
    """The model file cannot be read, or an entry is wrong; the message names the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Strict):
    """Fit the picture to the square input, scale to 0..1, subtract the mean, divide by the standard deviation."""

    input_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square input in pixels."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: resize the shorter side, then crop the centre; `squash`: resize both sides to the input size."""
    resize: int = Field(default=256, ge=8, le=8192)
    """Length of the shorter side before the crop, in pixels; not used by `squash`."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of each channel, on the 0..1 scale."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.229,
        0.224,
        0.225,
    )
    """Of each channel, on the 0..1 scale."""
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @model_validator(mode="after")
    def _crop_fits(self) -> "Preprocessing":
        if self.fit == "crop" and self.resize < self.input_size:
            raise ValueError(f"resize ({self.resize}) must be at least input_size ({self.input_size})")
        return self


class ModelEntry(_Strict):
    """A version of a model as an operator registers it."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(default="1", pattern=NAME_PATTERN)
    source: dict[str, Any]
    """`kind` and the settings of that kind; see `models.sources`."""
    preprocessing: Preprocessing = Preprocessing()
    labels: str | list[str] = []
    """`imagenet-1k`, a file with one label a line, or the labels themselves."""
    output: Output = Output.LOGITS
    latest: bool = True
    """Whether requests without a version get this one."""

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.name, self.version


def read_entries(path: Path) -> list[ModelEntry]:
    """Reads a model file. Raises InvalidModelFile."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidModelFile(
            f"{path}: cannot be read: {error.strerror}. Set SAGITTAL_MODELS_FILE to a file."
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
    keys = [entry.key for entry in entries]
    if duplicates := {key for key in keys if keys.count(key) > 1}:
        raise InvalidModelFile(
            f"{where}: registered twice: {', '.join(f'{n} version {v}' for n, v in sorted(duplicates))}"
        )
    return entries
