"""Loading a model: from an entry to something that the engine can run, with what was found out about it."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sagittal.core.labels import IMAGENET, read_labels
from sagittal.engine.evaluator import PROBABILITIES, Output, TorchEvaluator
from sagittal.engine.opaque import Opaque, OpaqueEvaluator
from sagittal.engine.optimise import Step, optimise
from sagittal.engine.timing import Variant
from sagittal.models.entry import ModelEntry
from sagittal.models.measuring import batch_sizes, find_quantum, find_throughput, runs_small_cheaply
from sagittal.models.sources import EVERYTHING, Access, ModelUnavailable, load_source
from sagittal.models.sources.files import find_inside

PROBE_IMAGES = 4
"""Images of noise on which optimisations are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found about a model when it was loaded."""

    classes: int
    supports_gradients: bool
    spatial_layers: tuple[str, ...]
    """Layers whose output is (n, channels, height, width) with more than one pixel, in order of execution."""
    feature_layers: tuple[str, ...]
    """Layers whose output is (n, features), in order of execution."""
    steps: tuple[Step, ...]
    """What was done to make it faster."""
    batch_size: int
    evaluations_per_second: float
    gradient_evaluations_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model on a device, ready for the engine."""

    entry: ModelEntry
    digest: str
    """SHA-256 over weights and preprocessing, in hexadecimal."""
    labels: Sequence[str]
    evaluator: TorchEvaluator
    found: Found
    load_seconds: float = field(default=0.0)
    activation_bytes: int = 0
    """Bytes that a batch takes at its peak beside the weights."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.evaluator.device

    @property
    def memory_bytes(self) -> int:
        """Bytes of all weights on the device, those of the model as it came and of the optimised one."""
        modules = {self.evaluator.module, self.evaluator.inspected or self.evaluator.module}
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def load(entry: ModelEntry, device: torch.device, *, batch_size: int = 0, access: Access = EVERYTHING) -> LoadedModel:
    """Loads a model, makes it faster and finds out what it can do.

    Args:
        entry: What to load.
        device: Where to run it.
        batch_size: Most masked images in a batch; 0 finds one.
        access: What it may be loaded from.

    Raises:
        ModelUnavailable: it cannot be loaded, or does not classify images of the size that its preprocessing makes.
    """
    started = time.monotonic()
    sourced = load_source(entry.source, access)
    module = sourced.module.eval().requires_grad_(False)
    digest = model_digest(module, entry)
    module = module.to(device)
    if isinstance(module, Opaque):
        batch_size = batch_size or module.batch_size
    probe = _probe(entry, device)
    classes = _classes(module, probe)
    labels = _labels(entry, classes, access)
    gradients = _gradients_flow(module, probe)
    evaluator, steps = _evaluator(module, entry, probe, classes=classes, gradients=gradients)
    spatial, flat = _layers(module, probe)
    variant = Variant(evaluator.module, channels_last=evaluator.channels_last, gradient=gradients)
    evaluator.quantum = find_quantum(variant, probe)
    evaluator.pads_small = not runs_small_cheaply(variant, probe[:1], evaluator.quantum)
    # A size that is given is not measured at, however large it is.
    sizes = batch_sizes(device, evaluator.quantum)
    throughput = find_throughput(variant, probe[:1], sizes[:1] if batch_size else sizes)
    found = Found(
        classes=classes,
        supports_gradients=gradients,
        spatial_layers=spatial,
        feature_layers=flat,
        steps=(*sourced.notes, *steps),
        batch_size=_whole_quanta(batch_size or throughput.batch_size, evaluator.quantum),
        evaluations_per_second=throughput.forward,
        gradient_evaluations_per_second=throughput.backward,
    )
    seconds = time.monotonic() - started
    return LoadedModel(
        entry=entry, digest=digest, labels=labels, evaluator=evaluator, found=found, load_seconds=seconds
    )


def _whole_quanta(batch_size: int, quantum: int) -> int:
    """Returns the multiple of the quantum that is at most the batch size, since batches are padded to one."""
    return max(quantum, batch_size - batch_size % quantum)


def choose_device(wish: str = "") -> torch.device:
    """Returns the device that is wished for, or the best there is. Raises ModelUnavailable where it is not there."""
    if not wish:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelUnavailable(f"the device {wish!r} is not there: {str(error).splitlines()[0]}") from error
    return device


def model_digest(module: nn.Module, entry: ModelEntry) -> str:
    """Returns SHA-256 over names, shapes and values of all weights, and over preprocessing and output."""
    digest = hashlib.sha256(f"{entry.preprocessing.model_dump_json()} {entry.output} {type(module)}".encode())
    if isinstance(module, Opaque):
        digest.update(module.identity.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _probe(entry: ModelEntry, device: torch.device) -> Tensor:
    size = entry.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PROBE_IMAGES, 3, size, size, generator=generator).to(device)


def _classes(module: nn.Module, probe: Tensor) -> int:
    try:
        with torch.inference_mode():
            outputs = module(probe)
    except Exception as error:
        side = probe.shape[-1]
        raise ModelUnavailable(f"the model fails on an input of {side}x{side} pixels: {error}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ModelUnavailable(f"the model returns {type(outputs).__name__}; expected a tensor (images, classes)")
    return int(outputs.shape[1])


def _labels(entry: ModelEntry, classes: int, access: Access) -> Sequence[str]:
    if isinstance(entry.labels, list):
        labels: Sequence[str] = entry.labels
    else:
        try:
            labels = read_labels(_labels_source(entry.labels, access))
        except OSError as error:
            raise ModelUnavailable(f"the labels {entry.labels} cannot be read: {error.strerror}") from error
    if labels and len(labels) != classes:
        raise ModelUnavailable(f"there are {len(labels)} labels for {classes} classes")
    return labels


def _labels_source(name: str, access: Access) -> str:
    """Returns what names the labels; files lie where weights may."""
    return name if name == IMAGENET else str(find_inside(name, access.directories, "SAGITTAL_SOURCES__DIRECTORIES"))


def _evaluator(
    module: nn.Module, entry: ModelEntry, probe: Tensor, *, classes: int, gradients: bool
) -> tuple[TorchEvaluator, list[Step]]:
    if isinstance(module, Opaque):
        return _opaque_evaluator(module, entry, probe.device, classes)
    fast, channels_last, steps = optimise(module, probe, PROBABILITIES[Output(entry.output)], gradient=gradients)
    evaluator = TorchEvaluator(
        module=fast,
        inspected=module,
        device=probe.device,
        output=Output(entry.output),
        channels_last=channels_last,
        autocast=_reduced_precision(probe.device),
        supports_gradients=gradients,
        classes=classes,
    )
    return evaluator, steps


def _opaque_evaluator(
    module: Opaque, entry: ModelEntry, device: torch.device, classes: int
) -> tuple[TorchEvaluator, list[Step]]:
    evaluator = OpaqueEvaluator(module=module, device=device, output=Output(entry.output), classes=classes)
    return evaluator, [Step("graph", False, f"the model runs {module.where}: there is no graph to change")]


def _reduced_precision(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _gradients_flow(module: nn.Module, probe: Tensor) -> bool:
    """Whether the score has a finite gradient with respect to the input."""
    try:
        _, gradient = Variant(module).backward(probe[:1])
    except RuntimeError:
        return False
    return bool(torch.isfinite(gradient).all())


def _layers(module: nn.Module, probe: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of layers with a spatial and with a flat output, in order of execution."""
    outputs: dict[str, torch.Size] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.shape

        return hook

    named = [(name, layer) for name, layer in module.named_modules() if name]
    handles = [layer.register_forward_hook(note(name)) for name, layer in named]
    try:
        with torch.inference_mode():
            module(probe[:1])
    finally:
        for handle in handles:
            handle.remove()
    spatial = tuple(name for name, shape in outputs.items() if len(shape) == 4 and shape[-1] * shape[-2] > 1)
    flat = tuple(name for name, shape in outputs.items() if len(shape) == 2)
    return spatial, flat


def set_threads(count: int) -> None:
    """Sets the threads that PyTorch computes with on the CPU; 0 takes one for each processor that may be used."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
