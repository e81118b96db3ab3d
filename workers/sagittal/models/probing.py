"""Properties of a model found by trying it: its layers, its input sizes, its memory."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagittal.engine.requests import ModelView, Subject
from sagittal.engine.timing import Variant
from sagittal.explain import EXPLAINERS, Needs, parameters
from sagittal.explain.attribution.layers import Layout, Unsupported, layout_of

SIDES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 480, 512, 600)
"""Common sides of inputs of networks, in pixels."""

REACH = 2
"""Largest side that is tried, as a multiple of the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLayers:
    """Layers of a model, in order of execution."""

    spatial: tuple[str, ...] = ()
    """Layers whose output has spatial positions."""
    flat: tuple[str, ...] = ()
    """Layers below the output whose own output is a list of features: (n, features), or (n, features, 1, 1)."""
    patch_grid: tuple[int, int] | None = None
    """Rows and columns of a transformer's patches; None for other models."""


def see_layers(module: nn.Module, probe: Tensor) -> SeenLayers:
    """Returns the layers of a model whose outputs methods can use."""
    shapes: dict[str, torch.Size] = {}
    flat: dict[str, Tensor] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = output.shape
                if _is_flat(output):
                    flat[name] = output

        return hook

    # TorchScript accepts no hooks, so that its layers are not accessible.
    named = [
        (name, layer)
        for name, layer in module.named_modules()
        if name and not isinstance(layer, torch.jit.ScriptModule)
    ]
    handles = [layer.register_forward_hook(note(name)) for name, layer in named]
    try:
        with torch.inference_mode():
            result = module(probe[:1])
    finally:
        for handle in handles:
            handle.remove()
    size = (probe.shape[-2], probe.shape[-1])
    layouts = {name: layout for name, shape in shapes.items() if (layout := layout_of(shape, size)) is not None}
    return SeenLayers(
        spatial=tuple(layouts),
        flat=tuple(name for name, output in flat.items() if not _is_same(output, result)),
        patch_grid=_patch_grid(module, layouts),
    )


def _is_flat(output: Tensor) -> bool:
    return output.ndim == 2 or (output.ndim == 4 and output.shape[2:].numel() == 1)


def _is_same(output: Tensor, result: object) -> bool:
    """Returns whether a layer's output is the model's own, in any shape."""
    return isinstance(result, Tensor) and output.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()


def _patch_grid(module: nn.Module, layouts: Mapping[str, Layout]) -> tuple[int, int] | None:
    if not any("Attention" in type(layer).__name__ for layer in module.modules()):
        return None
    tokens = [layout for layout in layouts.values() if layout.axis != 1]
    return (tokens[0].rows, tokens[0].columns) if tokens else None


def input_limits(module: nn.Module, probe: Tensor, classes: int) -> tuple[int, int]:
    """Returns the smallest and the largest side of inputs that the model accepts, in pixels.

    Sides are tried outwards from the model's own, up to `REACH` times it, until one is refused.
    """
    own = int(probe.shape[-1])
    smaller = [side for side in reversed(SIDES) if side < own]
    larger = [side for side in SIDES if own < side < REACH * own] + [REACH * own]
    return _reach(module, probe, classes, [own, *smaller]), _reach(module, probe, classes, [own, *larger])


def sides_taken(module: nn.Module, device: torch.device) -> list[int]:
    """Returns the common sides that a model accepts, for a model that refused its own."""
    return [side for side in SIDES if takes(module, torch.zeros(1, 3, side, side, device=device)) > 0]


def _reach(module: nn.Module, probe: Tensor, classes: int, sides: list[int]) -> int:
    reached = sides[0]
    for side in sides[1:]:
        if takes(module, probe.new_zeros(1, 3, side, side)) != classes:
            break
        reached = side
    return reached


def takes(module: nn.Module, images: Tensor) -> int:
    """Returns the number of classes that the model returns for images; 0 if it refuses them."""
    try:
        with torch.inference_mode():
            outputs = module(images)
    except Exception:  # noqa: BLE001 - a model may refuse with any exception
        return 0
    return int(outputs.shape[1]) if isinstance(outputs, Tensor) and outputs.ndim == 2 else 0


def refusals(view: ModelView, layer: str) -> Mapping[str, str]:
    """Returns the methods that read layers but are not defined for this model, with the reason.

    Args:
        view: The model with its own layers, an image and a target.
        layer: The layer to read; empty for the choice of each method.
    """
    refused = {}
    for row in EXPLAINERS.values():
        if Needs.SPATIAL_LAYER in row.explainer.needs:
            try:
                takes_layer = any(declared.name == "layer" for declared in parameters(row.explainer))
                row.explainer(**({"layer": layer} if layer and takes_layer else {})).try_on(view)
            except Unsupported as error:
                refused[row.name] = str(error)
            except Exception as error:  # noqa: BLE001 - hooks on foreign code may raise anything; the reason is reported
                refused[row.name] = f"it fails on this model: {type(error).__name__}: {str(error).splitlines()[0]}"
    return refused


def view_of(module: nn.Module, probabilities: Any, probe: Tensor) -> ModelView:
    """Returns a model with an image of noise and its top class."""
    with torch.inference_mode():
        target = int(probabilities(module(probe[:1]))[0].argmax())
    return ModelView(module, probabilities, Subject(probe[0], torch.zeros_like(probe[0]), target))


def batch_bytes(variant: Variant, probe: Tensor) -> int:
    """Returns the peak memory per image of a batch in addition to the weights, in bytes."""
    work = variant.backward if variant.gradient else variant.forward
    if probe.device.type == "cuda":
        torch.cuda.synchronize(probe.device)
        before = torch.cuda.memory_allocated(probe.device)
        torch.cuda.reset_peak_memory_stats(probe.device)
        work(probe)
        return int(torch.cuda.max_memory_allocated(probe.device) - before) // len(probe)
    with LiveBytes() as live:
        work(probe)
    return int(live.peak) // len(probe)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all tensors made within it that still live; the allocator of a CPU does not report them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        """Peak of the live bytes."""
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts the tensors it made."""
        made = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            if storage.data_ptr() not in given:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size


def _storages(tree: Any) -> Sequence[torch.UntypedStorage]:
    """Returns the storages of tensors; weights in oneDNN's layout do not expose theirs."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]
