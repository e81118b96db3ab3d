"""Model entries: the registration of a model by an operator, from a file or over the API, checked field by field."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sagittal.core.enums import check_enum
from sagittal.core.errors import InvalidRequest
from sagittal.core.methods import shortest
from sagittal.core.text import shown
from sagittal.v1 import model_pb2

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"

SHA256_PATTERN = r"^([0-9a-f]{64})?$"

#: Labels that one model may have.
MAX_LABELS = 100_000

Output = Literal["logits", "probabilities", "multi-label-logits", "multi-label-probabilities"]

Finite = Annotated[float, Field(allow_inf_nan=False)]

Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Tag = Annotated[str, Field(pattern=TAG_PATTERN)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Strict):
    """Converts an image to the model's input: fit to a square, scale to 0..1, subtract the mean, divide by the std."""

    preset: str = ""
    """Weights of torchvision whose preprocessing to use, such as `ResNet50_Weights.IMAGENET1K_V2`. Only `layout` and
    `channel_order` may be set beside it."""
    input_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square input in pixels."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """`crop`: resize the shorter side, then crop the centre; `squash`: resize both sides to the input size; `pad`:
    resize the longer side to the input size and pad the shorter one with black on both sides."""
    resize: int = Field(default=256, ge=8, le=8192)
    """Length of the shorter side before the crop, in pixels; ignored by `squash` and `pad`."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[Finite, Finite, Finite] = (0.485, 0.456, 0.406)
    """Mean of each channel on the 0..1 scale, in the order of `channel_order`."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel on the 0..1 scale, in the order of `channel_order`."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """`NCHW`: the model takes channels first. `NHWC`: it takes channels last."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.fit == "crop" and self.resize < self.input_size:
            raise ValueError(f"resize ({self.resize}) must be at least input_size ({self.input_size})")
        return self

    @model_validator(mode="after")
    def _preset_alone(self) -> Self:
        beside = self.model_fields_set - {"preset", "layout", "channel_order"}
        if self.preset and beside:
            raise ValueError(f"preset determines {', '.join(sorted(beside))}: leave out the preset or these")
        return self


class Layers(_Strict):
    """Layers that methods use if a request names none; empty lets the method choose."""

    spatial: str = ""
    """For Grad-CAM and excitation backpropagation: a layer with a spatial output."""
    features: str = ""
    """For concepts (XNN): a layer with a flat output."""


class DeviceWishes(_Strict):
    """Requirements of a model for the workers that serve it."""

    kind: Literal["", "cpu", "cuda"] = ""
    """Device kind; empty takes the worker's."""
    batch_size: int = Field(default=0, ge=0, le=65_536)
    """Largest number of masked images in a batch; 0 lets the worker measure it."""
    full_precision: bool = False
    """Keeps full precision, even if the device is faster at a lower one."""
    compile: bool = False
    """Compiles the model if that makes it faster; loading then takes minutes."""


class ModelEntry(_Strict):
    """A model version as an operator registers it."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(default="1", pattern=NAME_PATTERN)
    source: dict[str, Any]
    """`kind`, and the settings of that kind; see `models.sources`."""
    preprocessing: Preprocessing = Preprocessing()
    labels: str | list[str] = Field(default=[], max_length=MAX_LABELS)
    """`imagenet-1k`, the path of a file with one label per line, or the labels themselves."""
    output: Output = "logits"
    """Meaning of the model's output values."""
    layers: Layers = Layers()
    device: DeviceWishes = DeviceWishes()
    weights_digest: str = Field(default="", pattern=SHA256_PATTERN)
    """SHA-256 that the weights must have; empty accepts any."""
    tags: dict[Tag, Tag] = {}
    """Pairs by which workers select the models they serve."""
    load: Literal["preload", "on-demand"] = "preload"
    """When workers load the model."""
    latest: bool = False
    """Makes this version the one used by requests without a version. The first version of a name always is."""

    @field_validator("source")
    @classmethod
    def _has_kind(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("kind"), str) or not value["kind"]:
            raise ValueError("kind is not set; give the kind of source, such as 'torchvision'")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_say_something(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and (blank := [index for index, label in enumerate(value) if not label.strip()]):
            raise ValueError(f"label {blank[0]} is blank; give each class a name, or no labels at all")
        return value

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.name, self.version


IMAGENET = "imagenet-1k"
"""The 1,000 classes of ImageNet, as torchvision names them."""


def read_labels(source: str) -> list[str]:
    """Returns the labels of `imagenet-1k`, or of a UTF-8 file with one label per line. Raises OSError."""
    if source == IMAGENET:
        return (resources.files(__package__) / "data" / "imagenet-1k.txt").read_text().splitlines()
    return Path(source).read_text().splitlines()


OUTPUTS: Mapping[Output, "model_pb2.OutputKind.ValueType"] = {
    "logits": model_pb2.OUTPUT_KIND_LOGITS,
    "probabilities": model_pb2.OUTPUT_KIND_PROBABILITIES,
    "multi-label-logits": model_pb2.OUTPUT_KIND_MULTI_LABEL_LOGITS,
    "multi-label-probabilities": model_pb2.OUTPUT_KIND_MULTI_LABEL_PROBABILITIES,
}

LOADS: Mapping[str, "model_pb2.LoadPolicy.ValueType"] = {
    "preload": model_pb2.LOAD_POLICY_PRELOAD,
    "on-demand": model_pb2.LOAD_POLICY_ON_DEMAND,
}

DECLARED = frozenset(
    {
        "name", "version", "source", "preprocessing", "labels", "labels_from", "output", "layers", "device",
        "weights_digest", "tags", "load_policy",
    }
)  # fmt: skip
"""Fields of `Model` that a registration sets. `latest` is part of the request but stored separately."""

_API_NAMES = {"load": "load_policy"}
"""Fields of an entry that have another name in the API."""


def declaration_of(entry: ModelEntry) -> model_pb2.Model:
    """Returns an entry as the registry stores it: only the declared fields."""
    by_name = isinstance(entry.labels, str)
    return model_pb2.Model(
        name=entry.name,
        version=entry.version,
        source=_source(entry.source),
        preprocessing=preprocessing_message(entry.preprocessing),
        labels=() if by_name else entry.labels,
        labels_from=str(entry.labels) if by_name else "",
        output=OUTPUTS[entry.output],
        layers=model_pb2.Layers(**entry.layers.model_dump()),
        device=model_pb2.DeviceWishes(**entry.device.model_dump()),
        weights_digest=entry.weights_digest,
        tags=entry.tags,
        load_policy=LOADS[entry.load],
    )


def preprocessing_message(preprocessing: Preprocessing) -> model_pb2.Preprocessing:
    """Returns the preprocessing as a message; a preset is given by its name only."""
    shown = preprocessing.model_dump()
    if preprocessing.preset:
        shown = {name: shown[name] for name in ("preset", "layout", "channel_order")}
    return model_pb2.Preprocessing(**shown)


def entry_of(model: model_pb2.Model, *, field: str = "model") -> ModelEntry:
    """Returns the entry that a message declares.

    Args:
        model: From a caller, or from the registry.
        field: Path of the message in the request, for errors.

    Raises:
        InvalidRequest: a field is wrong.
    """
    check_enum(model_pb2.OutputKind.DESCRIPTOR, model.output, f"{field}.output")
    check_enum(model_pb2.LoadPolicy.DESCRIPTOR, model.load_policy, f"{field}.load_policy")
    said = {
        "name": model.name,
        "version": model.version or "1",
        "source": {**_settings(model.source, f"{field}.source.settings"), "kind": model.source.kind},
        "preprocessing": _preprocessing(model.preprocessing),
        "labels": model.labels_from or list(model.labels),
        "output": _name_of(OUTPUTS, model.output, "logits"),
        "layers": Layers(spatial=model.layers.spatial, features=model.layers.features),
        "device": _given(model.device),
        "weights_digest": model.weights_digest,
        "tags": dict(model.tags),
        "load": _name_of(LOADS, model.load_policy, "preload"),
        "latest": model.latest,
    }
    try:
        return ModelEntry.model_validate(said)
    except ValidationError as error:
        raise _invalid(error, field) from error


def _invalid(error: ValidationError, field: str) -> InvalidRequest:
    first = error.errors()[0]
    place, said = first["loc"], first["msg"].removeprefix("Value error, ")
    if place[-1] == "[key]":  # the path must name the field, not the wrong key in it
        place, said = place[:-2], f"the key {shown(place[-2])}: {said}"
    names = (_API_NAMES.get(str(part), str(part)) for part in place if part not in ("str", "list[str]"))
    path = ".".join((field, *names))
    return InvalidRequest(f"{path}: {said}", field=path)


def _name_of(table: Mapping[Any, int], number: int, otherwise: str) -> str:
    return next((str(name) for name, value in table.items() if value == number), otherwise)


def _given(message: model_pb2.Preprocessing | model_pb2.DeviceWishes) -> dict[str, Any]:
    """Returns the fields that are set, by name."""
    return {field.name: value for field, value in message.ListFields()}


def _preprocessing(message: model_pb2.Preprocessing) -> dict[str, Any]:
    given = _given(message)
    if message.preset:  # GetModel also lists the values it determines; callers may send them back
        return {name: given[name] for name in ("preset", "layout", "channel_order") if name in given}
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(shortest(value) for value in given[name])
    return given


def _source(source: Mapping[str, Any]) -> model_pb2.ModelSource:
    message = model_pb2.ModelSource(kind=str(source["kind"]))
    json_format.ParseDict({name: value for name, value in source.items() if name != "kind"}, message.settings)
    return message


def _settings(source: model_pb2.ModelSource, field: str) -> dict[str, Any]:
    try:
        settings = json_format.MessageToDict(source.settings)
    except ValueError as error:  # NaN and infinity, which JSON does not have
        raise InvalidRequest(f"{field}: {error}; give finite numbers", field=field) from error
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """Returns whole numbers as integers, because a Struct stores only floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


class InvalidModelFile(Exception):
    """The model file cannot be read or has a wrong entry; the message names the field."""


def read_entries(path: Path) -> list[ModelEntry]:
    """Reads the model entries of a TOML file. Raises InvalidModelFile.

    For example::

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
    return parse_entries(read_document(path), str(path))


def read_document(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file. Raises InvalidModelFile."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidModelFile(
            f"{path}: cannot be read: {error.strerror}. Set SAGITTAL_MODELS_FILE (service: MODELS_FILES)."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidModelFile(f"{path}: is not valid TOML: {error}") from error


def parse_entries(document: dict[str, Any], where: str) -> list[ModelEntry]:
    """Returns the entries of a parsed model file; `where` names it in errors. Raises InvalidModelFile."""
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
        raise InvalidModelFile(
            f"{where}: registered twice: {', '.join(f'{n} version {v}' for n, v in twice)}; remove one"
        )
    latest = Counter(entry.name for entry in entries if entry.latest)
    if several := sorted(name for name, times in latest.items() if times > 1):
        raise InvalidModelFile(f"{where}: several versions have latest = true: {', '.join(several)}; set it for one")
