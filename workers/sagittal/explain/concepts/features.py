"""Flat features of images from a layer, extracted in batches between those of other jobs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagittal.engine.requests import Inspect, ModelView, Subject
from sagittal.explain.attribution.layers import LISTED, Unsupported, hooked, layout_of
from sagittal.explain.events import Progress
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import derive_seed
from sagittal.explain.steps import Steps, ask

SMALLEST_VIEW = 0.25
"""Smallest side of a random crop, relative to the image's."""

LARGEST_VIEW = 0.95
"""Largest side of a random crop, relative to the image's."""


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, relative to the size of an image: 0 to 1."""


class UnfitImages(Exception):
    """The images do not allow a fit; the message states the fault and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One image of a set after reading."""

    index: int
    """Its index in the set, from 0."""
    image: Tensor | None = None
    """Float32 of shape (3, height, width), the model's input; None if the image is unreadable."""
    fault: str = ""
    """Why it is unreadable; otherwise empty."""


class ImageSet(Protocol):
    """Images for a fit, read a few at a time."""

    @property
    def digest(self) -> str:
        """Identifies the set of images; empty if its features must not be cached."""
        ...

    def __len__(self) -> int:
        """Number of images, including unreadable ones."""
        ...

    def ready(self) -> bool:
        """Whether `take` returns without waiting."""
        ...

    def take(self) -> Sequence[Read]:
        """Returns the next few images; none at the end."""
        ...

    def read(self, index: int) -> Read:
        """Returns one image by index."""
        ...

    def parts(self, index: int) -> Mapping[str, Box]:
        """Returns the boxes of annotated parts by name, in the model's input; empty if there are none."""
        ...


class GivenImages:
    """Images in memory."""

    digest = ""

    def __init__(
        self, images: Tensor, *, batch: int = 16, parts: Mapping[int, Mapping[str, Box]] = MappingProxyType({})
    ) -> None:
        """Takes images (n, 3, height, width), as inputs of the model, and parts by image index and by name."""
        self._images = images
        self._parts = parts
        self._batch = batch
        self._next = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def ready(self) -> bool:
        """Always true."""
        return True

    def take(self) -> Sequence[Read]:
        """Returns the next few images."""
        start, self._next = self._next, self._next + self._batch
        return [self.read(index) for index in range(start, min(self._next, len(self)))]

    def read(self, index: int) -> Read:
        """Returns one image."""
        return Read(index, self._images[index])

    def parts(self, index: int) -> Mapping[str, Box]:
        """Returns the annotated parts of an image."""
        return self._parts.get(index, {})


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """Features and outputs of the readable images of a set."""

    kept: Tensor
    """Int64 of shape (images,): the index of each in the set."""
    features: Tensor
    """Float32 of shape (images, 1 + views, features), for each image and its crops."""
    outputs: Tensor
    """Float32 of shape (images, 1 + views, classes): the model's own outputs."""
    positions: Tensor
    """Float32 of shape (images, 1 + views, positions, features): the layer's output at random positions of each."""

    def state(self) -> Mapping[str, Tensor]:
        """Returns the content as tensors by name, for a cache."""
        content = {"kept": self.kept, "features": self.features, "outputs": self.outputs}
        return content | ({"positions": self.positions} if self.positions.numel() else {})

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> "Extracted":
        """Returns the content of a cache."""
        features = state["features"]
        none = features.new_zeros(*features.shape[:2], 0, features.shape[2])
        return cls(state["kept"], features, state["outputs"], state.get("positions", none))


class FeatureCache(Protocol):
    """Keeps extracted features."""

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns the tensors stored under a key, on the model's device; None if there are none."""
        ...

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Stores tensors under a key, as long as there is room."""
        ...


class NoCache:
    """A cache that stores nothing."""

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns None."""
        return None

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Does nothing."""


def find_layer(view: ModelView, name: str, *, spatial: bool = False) -> str:
    """Returns the layer of that name, or for an empty name the last one before the model's output with flat output.

    With `spatial`, an empty name is the last layer whose output has positions.

    Raises:
        InvalidParameter: the layer does not exist or has no features of images; the message lists those that do.
        Unsupported: no layer has any.
    """
    seen: dict[str, Tensor] = {}
    images = _images_of(view)

    def note(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                seen[layer] = output

        return hook

    hooks = {layer: note(path) for path, layer in view.module.named_modules() if path and _can_be_seen(layer)}
    with torch.no_grad(), hooked(hooks):
        outputs = view.module(images)
    size = (images.shape[-2], images.shape[-1])
    able = [path for path, output in seen.items() if not _same(output, outputs) and _is_feature(output, size)]
    if not able:
        raise Unsupported("the model has no layer below its output with readable features; XNN requires one")
    if not name:
        level = [path for path in able if _is_flat(seen[path]) is not spatial]
        return level[-1] if level else able[-1]
    if name not in able:
        why = "has no features of images below the output" if name in dict(view.module.named_modules()) else "is none"
        listed = ("..., " if len(able) > LISTED else "") + ", ".join(able[-LISTED:])
        raise InvalidParameter("layer", f"{name!r} {why} of the model's layers; give one of {listed}")
    return name


def layer_features(module: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns flat features (n, features), the layer's own output, and the model's outputs (n, classes)."""
    caught: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        caught.append(output)

    with hooked({module.get_submodule(layer): hook}):
        outputs = module(images)
    return flat(caught[-1], (images.shape[-2], images.shape[-1])), caught[-1], outputs


def flat(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a layer's output as features (n, features), averaged over positions."""
    if output.ndim == 2:
        return output
    if _is_flat(output):
        return output.flatten(1)
    layout = layout_of(output.shape, size)
    if layout is None:
        raise Unsupported(f"an output of shape {tuple(output.shape)} has no features of images")
    return layout.to_channels(output).mean((2, 3))


def extract(
    images: ImageSet,
    layer: str,
    *,
    views: int,
    positions: int = 0,
    seed: int,
    rows: int,
    cache: FeatureCache,
    subject: Subject,
    until: float,
) -> Steps[Extracted]:
    """Yields requests and progress up to the share `until`; returns Extracted.

    Args:
        images: The set.
        layer: Name of the layer.
        views: Number of random crops per image that are also read.
        positions: Number of random positions of each image and crop whose features are also read.
        seed: Seed of the crops and positions.
        rows: Images and crops per forward pass; other jobs run in between.
        cache: Cache of features; read first and filled afterwards.
        subject: Any subject, for the requests.
        until: Share of the whole job's progress at the end of this part.
    """
    key = f"{images.digest} {layer} {views} {seed if views or positions else 0}"
    key += f" {positions}" if positions else ""
    kept = cache.get(key) if images.digest else None
    if kept is not None:
        return Extracted.of_state(kept)
    parts: list[Extracted] = []
    done = 0
    take = Inspect(subject=subject, call=lambda _view: images.take(), rows=1, ready=images.ready)
    while batch := (yield from ask(take)):
        done += len(batch)
        sound = [(read.index, read.image) for read in batch if read.image is not None]
        if sound:
            part = yield from _read_off(sound, layer, (views, positions), seed, rows, subject)
            parts.append(part)
        yield Progress(until * done / max(len(images), 1), phase="features")
    if not parts:
        none = torch.zeros(0, 1, 0)
        return Extracted(torch.zeros(0, dtype=torch.int64), none, none, none.unsqueeze(2))
    whole = Extracted(
        torch.cat([part.kept for part in parts]),
        torch.cat([part.features for part in parts]),
        torch.cat([part.outputs for part in parts]),
        torch.cat([part.positions for part in parts]),
    )
    if images.digest:
        cache.put(key, whole.state())
    return whole


def _read_off(
    sound: Sequence[tuple[int, Tensor]], layer: str, counts: tuple[int, int], seed: int, rows: int, subject: Subject
) -> Steps[Extracted]:
    """Returns the outputs of the layer and the model for a few images and their crops, in batches of `rows`.

    `counts` are the numbers of crops, and of positions.
    """
    views, positions = counts
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = [row for index, image in sound for row in (image, *_views(image, views, derive_seed(seed, index)))]
    for start in range(0, len(seen), rows):
        some = seen[start : start + rows]
        drawn = derive_seed(seed, "positions", sound[0][0], start)

        def call(view: ModelView, some: list[Tensor] = some, drawn: int = drawn) -> tuple[Tensor, Tensor, Tensor]:
            images = torch.stack(some)
            with torch.no_grad():
                features, output, outputs = layer_features(view.module, layer, images)
            places = _at_positions(output, (images.shape[-2], images.shape[-1]), positions, drawn)
            return features.float(), outputs.float(), places.float()

        found.append((yield from ask(Inspect(subject=subject, call=call, rows=len(some)))))
    shape = (len(sound), 1 + views)
    features, outputs, places = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return Extracted(
        torch.tensor([index for index, _ in sound]),
        features.reshape(*shape, -1),
        outputs.reshape(*shape, -1),
        places.reshape(*shape, *places.shape[1:]),
    )


def _at_positions(output: Tensor, size: tuple[int, int], count: int, seed: int) -> Tensor:
    """Returns a layer's output at random positions, of shape (n, count, features); a flat output has one position."""
    layout = None if _is_flat(output) else layout_of(output.shape, size)
    channels = output.flatten(1).unsqueeze(2) if layout is None else layout.to_channels(output).flatten(2)
    if not count:
        return channels[:, :, :0].transpose(1, 2)
    drawn = torch.rand(len(channels), count, generator=torch.Generator().manual_seed(seed))
    places = (drawn * channels.shape[2]).long().to(channels.device)
    return channels.transpose(1, 2).gather(1, places.unsqueeze(2).expand(-1, -1, channels.shape[1]))


def _views(image: Tensor, count: int, seed: int) -> Sequence[Tensor]:
    """Returns random crops of an image, some mirrored, each resized to the image's size."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image.shape[-2:]
    crops = []
    for _ in range(count):
        side, down, right, flip = torch.rand(4, generator=generator).tolist()
        share = SMALLEST_VIEW + side * (LARGEST_VIEW - SMALLEST_VIEW)
        rows, columns = max(1, int(share * height)), max(1, int(share * width))
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        crop = image[None, :, top : top + rows, left : left + columns]
        crop = F.interpolate(crop, size=(height, width), mode="bilinear", antialias=True)[0]
        crops.append(crop.flip(-1) if flip < 0.5 else crop)
    return crops


def _images_of(view: ModelView) -> Tensor:
    weights: Any = next(view.module.parameters(), view.subject.image)
    return view.subject.image.to(weights.device).unsqueeze(0)


def _can_be_seen(layer: nn.Module) -> bool:
    """Returns whether a layer accepts hooks; compiled layers do not."""
    return not isinstance(layer, torch.jit.ScriptModule)


def _same(output: Tensor, outputs: Tensor) -> bool:
    """Returns whether a layer's output is the model's own, in any shape."""
    return output.untyped_storage().data_ptr() == outputs.untyped_storage().data_ptr()


def _is_flat(output: Tensor) -> bool:
    return output.ndim == 2 or (output.ndim == 4 and output.shape[2] * output.shape[3] == 1)


def _is_feature(output: Tensor, size: tuple[int, int]) -> bool:
    return len(output) == 1 and (_is_flat(output) or layout_of(output.shape, size) is not None)
