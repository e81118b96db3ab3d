"""Model entries: what an operator says of a model to register it, in a file or over the API; checked field by field."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    """Fit the picture to the square input, scale to 0..1, subtract the mean, divide by the standard deviation."""

    preset: str = ""
    """Weights of torchvision whose preprocessing this is, such as `ResNet50_Weights.IMAGENET1K_V2`; only `layout` and
    `channel_order` may be said beside it."""
    input_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square input in pixels."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: resize the shorter side, then crop the centre; `squash`: resize both sides to the input size."""
    resize: int = Field(default=256, ge=8, le=8192)
    """Length of the shorter side before the crop, in pixels; not used by `squash`."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[Finite, Finite, Finite] = (0.485, 0.456, 0.406)
    """Of each channel in the order of `channel_order`, on the 0..1 scale."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Of each channel in the order of `channel_order`, on the 0..1 scale."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """`NCHW`: the model takes channels first; `NHWC`: channels last."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.fit == "crop" and self.resize < self.input_size:
            raise ValueError(f"resize ({self.resize}) must be at least input_size ({self.input_size})")
        return self

    @model_validator(mode="after")
    def _preset_alone(self) -> Self:
        beside = self.model_fields_set - {"preset", "layout", "channel_order"}
        if self.preset and beside:
            raise ValueError(f"preset says {', '.join(sorted(beside))} already: leave the preset or these out")
        return self


class Layers(_Strict):
    """Layers that methods read where a request names none; empty lets the method choose."""

    spatial: str = ""
    """For Grad-CAM and excitation backpropagation: one with a spatial output."""
    features: str = ""
    """For concepts (XNN): one with a flat output."""


class DeviceWishes(_Strict):
    """What a model wishes of the workers that serve it."""

    kind: Literal["", "cpu", "cuda"] = ""
    """Empty takes what the worker has."""
    batch_size: int = Field(default=0, ge=0, le=65_536)
    """Most masked images in a batch; 0 lets the worker find it."""
    full_precision: bool = False
    """Keeps full precision where the device would be faster with less."""
    compile: bool = False
    """Compiles the model where that makes it faster, with CUDA graphs on CUDA; loading takes minutes then."""


class ModelEntry(_Strict):
    """A version of a model as an operator registers it."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(default="1", pattern=NAME_PATTERN)
    source: dict[str, Any]
    """`kind` and the settings of that kind; see `models.sources`."""
    preprocessing: Preprocessing = Preprocessing()
    labels: str | list[str] = Field(default=[], max_length=MAX_LABELS)
    """`imagenet-1k`, a file with one label a line, or the labels themselves."""
    output: Output = "logits"
    """What the numbers that leave the model mean."""
    layers: Layers = Layers()
    device: DeviceWishes = DeviceWishes()
    weights_digest: str = Field(default="", pattern=SHA256_PATTERN)
    """SHA-256 that the weights must have; empty admits any."""
    tags: dict[Tag, Tag] = {}
    """Pairs by which workers select the models that they serve."""
    load: Literal["preload", "on-demand"] = "preload"
    """When workers load it."""
    latest: bool = False
    """Makes this version the one that requests without a version get; the first version of a name is so anyhow."""

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
