"""Loading a model: from an entry to something that the engine can run, with what was found out about it."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sagittal.core.entries import Layers
from sagittal.core.labels import IMAGENET, read_labels
from sagittal.engine.compilation import bucket_sizes
from sagittal.engine.evaluator import PROBABILITIES, Output, TorchEvaluator
from sagittal.engine.opaque import Opaque, OpaqueEvaluator
from sagittal.engine.optimise import COMPILE, Step, optimise
from sagittal.engine.task import STRETCHED
from sagittal.engine.timing import Variant
from sagittal.models.adapting import adapt, choose_place, resolve_preset
from sagittal.models.checking import Check, check_model
from sagittal.models.entry import ModelEntry
from sagittal.models.measuring import batch_sizes, find_quantum, find_throughput, runs_small_cheaply
from sagittal.models.probing import SeenLayers, batch_bytes, input_limits, refusals, see_layers, sides_taken, view_of
from sagittal.models.sources import EVERYTHING, Access, ModelUnavailable, load_source
from sagittal.models.sources.files import find_inside

LISTED = 24
"""Most layers named in an error, the last ones."""

PROBE_IMAGES = 4
"""Images of noise on which optimisations are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found about a model when it was loaded."""

    classes: int
    supports_gradients: bool
    spatial_layers: tuple[str, ...]
    """Layers whose output keeps the places of the image apart, in order of execution."""
    feature_layers: tuple[str, ...]
    """Layers whose output is (n, features), in order of execution."""
    steps: tuple[Step, ...]
    """What was done to make it faster."""
    batch_size: int
    evaluations_per_second: float
    gradient_evaluations_per_second: float
    refused: Mapping[str, str] = field(default_factory=dict)
    """Methods that are not defined for this model although it has what they need, with the reason."""
    patch_grid: tuple[int, int] | None = None
    """Rows and columns of a transformer's patches."""
    input_limits: tuple[int, int] = (0, 0)
    """Smallest and largest side of inputs that it was seen to take, in pixels."""
    checks: tuple[Check, ...] = ()
    """What the self-check looked at."""
    weights_digest: str = ""
    """SHA-256 over its weights, in hexadecimal."""

    @property
    def deterministic(self) -> bool:
        """Whether the same input gives the same scores."""
        return all(check.passed for check in self.checks if check.name == "deterministic")


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
    device = choose_place(entry, device)
    entry = entry.model_copy(update={"preprocessing": resolve_preset(entry.preprocessing)})
    sourced = load_source(entry.source, access)
    module = sourced.module.eval().requires_grad_(False)
    weights = _checked_weights(module, entry)
    digest = model_digest(module, entry)
    if isinstance(module, Opaque):
        batch_size = batch_size or module.batch_size
    module = adapt(module, entry.preprocessing).to(device)
    probe = _probe(entry, device)
    classes = _classes(module, probe)
    labels = _labels(entry, classes, access)
    checks = _checked(module, entry, probe)
    gradients = _gradients_flow(module, probe)
    evaluator, steps = _evaluator(module, entry, probe, classes=classes, gradients=gradients)
    seen = see_layers(module, probe)
    _check_layers(entry.layers, seen)
    variant = Variant(evaluator.module, channels_last=evaluator.channels_last, gradient=gradients)
    compiled = any(step.name == COMPILE and step.applied for step in steps)
    if not compiled:
        evaluator.quantum = find_quantum(variant, probe)
        evaluator.pads_small = not runs_small_cheaply(variant, probe[:1], evaluator.quantum)
    # A size that is given is not measured at, however large it is.
    sizes = batch_sizes(device, evaluator.quantum)
    throughput = find_throughput(variant, probe[:1], sizes[:1] if batch_size else sizes)
    most = _whole_quanta(batch_size or throughput.batch_size, evaluator.quantum)
    if compiled:
        evaluator.buckets = bucket_sizes(most, STRETCHED)
        _warm(variant, probe[:1], evaluator.buckets)
    found = Found(
        classes=classes,
        supports_gradients=gradients,
        spatial_layers=seen.spatial,
        feature_layers=seen.flat,
        steps=(*sourced.notes, *steps),
        batch_size=most,
        evaluations_per_second=throughput.forward,
        gradient_evaluations_per_second=throughput.backward,
        refused=_refused(module, entry, probe, seen) if gradients else {},
        patch_grid=seen.patch_grid,
        input_limits=input_limits(module, probe, classes) if seen.spatial or seen.flat else (int(probe.shape[-1]),) * 2,
        checks=tuple(checks),
        weights_digest=weights,
    )
    return LoadedModel(
        entry=entry,
        digest=digest,
        labels=labels,
        evaluator=evaluator,
        found=found,
        load_seconds=time.monotonic() - started,
        activation_bytes=batch_bytes(variant, probe) * found.batch_size,
    )


def _refused(module: nn.Module, entry: ModelEntry, probe: Tensor, seen: SeenLayers) -> Mapping[str, str]:
    if not seen.spatial:
        return {}
    view = view_of(module, PROBABILITIES[Output(entry.output)], probe)
    return refusals(view, entry.layers.spatial)


def _checked(module: nn.Module, entry: ModelEntry, probe: Tensor) -> Sequence[Check]:
    """Returns the self-check. Raises ModelUnavailable where something that is required is not so."""
    checks = check_model(module, entry, probe)
    for check in checks:
        if check.required and not check.passed:
            raise ModelUnavailable(f"the self-check {check.name} failed: {check.detail}")
    return checks


def _checked_weights(module: nn.Module, entry: ModelEntry) -> str:
    """Returns the digest of the weights. Raises ModelUnavailable where it is not the one that was registered."""
    found = weights_digest(module)
    if entry.weights_digest not in ("", found):
        raise ModelUnavailable(
            f"weights_digest: the weights have SHA-256 {found}, and {entry.weights_digest} was registered: they are "
            "others, or damaged"
        )
    return found


def _check_layers(wanted: Layers, seen: SeenLayers) -> None:
    """Raises ModelUnavailable for a layer that was registered and is not there."""
    for field_name, name, known in (
        ("spatial", wanted.spatial, seen.spatial),
        ("features", wanted.features, seen.flat),
    ):
        if name and name not in known:
            raise ModelUnavailable(
                f"layers.{field_name} is {name!r}, which is no such layer of this model; give one of "
                f"{', '.join(known[-LISTED:]) or 'none'}"
            )


def _warm(variant: Variant, image: Tensor, sizes: Sequence[int]) -> None:
    """Runs a batch of each size, so that it is compiled before a job waits for it."""
    for size in sizes:
        inputs = image.repeat(size, 1, 1, 1)
        variant.forward(inputs)
        if variant.gradient:
            variant.backward(inputs)


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
    _digest_weights(digest, module)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Returns SHA-256 over names, shapes, types and values of all weights, whatever file they came in."""
    digest = hashlib.sha256()
    _digest_weights(digest, module)
    return digest.hexdigest()


def _digest_weights(digest: Any, module: nn.Module) -> None:
    if isinstance(module, Opaque):
        digest.update(module.identity.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


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
        taken = ", ".join(map(str, sides_taken(module, probe.device)))
        remedy = f"; it takes inputs of {taken} pixels: set preprocessing.input_size to one" if taken else ""
        raise ModelUnavailable(f"the model fails on an input of {side}x{side} pixels: {error}{remedy}") from error
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
        raise ModelUnavailable(f"there are {len(labels)} labels for {classes} classes; give one for each, or none")
    return labels


def _labels_source(name: str, access: Access) -> str:
    """Returns what names the labels; files lie where weights may."""
    return name if name == IMAGENET else str(find_inside(name, access.directories, "SAGITTAL_SOURCES__DIRECTORIES"))


def _evaluator(
    module: nn.Module, entry: ModelEntry, probe: Tensor, *, classes: int, gradients: bool
) -> tuple[TorchEvaluator, list[Step]]:
    if isinstance(module, Opaque):
        return _opaque_evaluator(module, entry, probe.device, classes)
    probabilities = PROBABILITIES[Output(entry.output)]
    fast, channels_last, steps = optimise(
        module, probe, probabilities, gradient=gradients, compiled=entry.device.compile
    )
    evaluator = TorchEvaluator(
        module=fast,
        inspected=module,
        device=probe.device,
        output=Output(entry.output),
        channels_last=channels_last,
        autocast=None if entry.device.full_precision else _reduced_precision(probe.device),
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


def set_threads(count: int) -> None:
    """Sets the threads that PyTorch computes with on the CPU; 0 takes one for each processor that may be used."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
